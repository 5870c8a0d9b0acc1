// Trajectories as files: golden check|write BUNDLE LIBRARY FOLDER [--within 1e-4] [--device NAME] [--engines FOLDER]
//     [--allow-code 1]
//
// `check`: every *.safetensors of the folder is a setting, its inputs and what Python made of it; it is run, and must
// go the same way: latents within a part of their range after every step, the same focus tokens. `write`: the same
// settings are run, and what is made of each is written beside it, as *.native, for Python to read.
#include <accelaes.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

namespace {

using Json = nlohmann::json;

struct Array {
    std::vector<int64_t> shape;
    bool is_whole;
    std::vector<float> numbers;
    std::vector<int64_t> whole;
};

struct Golden {
    Json setting;
    std::map<std::string, Array> arrays;

    const Array& at(const std::string& name) const { return arrays.at(name); }
};

struct Step {
    char symbol;
    std::vector<float> latents;
    std::vector<int64_t> focus;
};

template <typename Number>
std::vector<Number> read(const std::string& bytes, size_t from, size_t to) {
    std::vector<Number> numbers((to - from) / sizeof(Number));
    std::memcpy(numbers.data(), bytes.data() + from, to - from);
    return numbers;
}

// A safetensors file of fp32 and int64 arrays, with the setting in its metadata.
Golden read_golden(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    auto length = read<uint64_t>(bytes, 0, 8).at(0);
    Json header = Json::parse(bytes.substr(8, length));
    Golden golden;
    for (auto& [name, entry] : header.items()) {
        if (name == "__metadata__") {
            golden.setting = Json::parse(entry.at("setting").get<std::string>());
            continue;
        }
        Array& array = golden.arrays[name];
        array.shape = entry.at("shape").get<std::vector<int64_t>>();
        size_t from = 8 + length + entry.at("data_offsets").at(0).get<size_t>();
        size_t to = 8 + length + entry.at("data_offsets").at(1).get<size_t>();
        array.is_whole = entry.at("dtype") == "I64";
        if (array.is_whole) {
            array.whole = read<int64_t>(bytes, from, to);
        } else {
            array.numbers = read<float>(bytes, from, to);
        }
    }
    return golden;
}

void write_steps(const std::filesystem::path& path, const std::vector<Step>& steps) {
    Json header;
    std::string symbols, data;
    auto put = [&](const std::string& name, const char* dtype, const void* from, size_t count, size_t width) {
        size_t at = data.size();
        data.append(static_cast<const char*>(from), count * width);
        header[name] = {{"dtype", dtype}, {"shape", {count}}, {"data_offsets", {at, data.size()}}};
    };
    for (size_t i = 0; i < steps.size(); ++i) {
        symbols += steps[i].symbol;
        std::string step = "step." + std::to_string(i);
        put(step + ".latents", "F32", steps[i].latents.data(), steps[i].latents.size(), sizeof(float));
        if (!steps[i].focus.empty())
            put(step + ".focus", "I64", steps[i].focus.data(), steps[i].focus.size(), sizeof(int64_t));
    }
    header["__metadata__"] = {{"symbols", symbols}};
    std::string text = header.dump();
    uint64_t length = text.size();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), sizeof length);
    file << text << data << std::flush;
    if (!file) throw accelaes::Error(ACCELAES_FAILED, (path.string() + " can't be written").c_str());
}

std::vector<Step> carried_out(const accelaes::Bundle& bundle, const Golden& golden) {
    std::string preset = golden.setting.at("preset"), plan = golden.setting.at("plan");
    auto options = accelaes::sized<accelaes_run_options>();
    options.preset = preset.c_str();
    options.plan = plan.c_str();
    options.images = golden.setting.at("images");
    options.unguided = golden.setting.at("guided").get<bool>() ? 0 : 1;
    options.guidance = golden.setting.at("scale");
    options.sigmas = golden.at("sigmas").numbers.data();
    options.timesteps = golden.at("timesteps").numbers.data();
    auto run = bundle.run(options);
    std::vector<accelaes_tensor> inputs;
    for (const auto& [name, array] : golden.arrays) {
        if (name.rfind("input.", 0) != 0) continue;
        const char* own = name.c_str() + std::strlen("input.");
        inputs.push_back(array.is_whole ? accelaes::tensor(own, array.whole.data(), array.shape)
                                        : accelaes::tensor(own, array.numbers.data(), array.shape));
    }
    run.input(inputs);
    std::vector<Step> steps;
    for (bool more = true; more;) {
        auto [step, left] = run.next();
        auto [latents, count] = run.latents();
        steps.push_back({step.symbol, {latents, latents + count}, {}});
        if (step.symbol >= 'a') steps.back().focus = run.focus(options.images);
        more = left;
    }
    return steps;
}

// How far the latents are from the golden ones at most, as a part of their range; thrown where they part.
float compare(const std::string& name, const Golden& golden, const std::vector<Step>& steps, float allowed) {
    float furthest = 0;
    for (size_t i = 0; i < steps.size(); ++i) {
        std::string step = "step." + std::to_string(i), where = name + ", step " + std::to_string(i);
        const auto& wanted = golden.at(step + ".latents").numbers;
        if (wanted.size() != steps[i].latents.size()) throw accelaes::Error(1, (where + ": other latents").c_str());
        float range = 1, apart = 0;
        for (size_t k = 0; k < wanted.size(); ++k) {
            range = std::max(range, std::abs(wanted[k]));
            float difference = std::abs(wanted[k] - steps[i].latents[k]);
            if (!(difference <= apart)) apart = difference;  // what is no number is apart
        }
        furthest = std::max(furthest, apart / range);
        if (!(apart <= allowed * range)) throw accelaes::Error(1, (where + ": latents apart").c_str());
        auto focus = golden.arrays.find(step + ".focus");
        if (focus == golden.arrays.end() ? !steps[i].focus.empty() : focus->second.whole != steps[i].focus)
            throw accelaes::Error(1, (where + ": other focus tokens").c_str());
    }
    return furthest;
}

}  // namespace

int main(int count, char** words) {
    try {
        if (count < 5) throw accelaes::Error(ACCELAES_INPUT, "give check or write, a bundle, a library and a folder");
        bool writes = std::strcmp(words[1], "write") == 0;
        auto options = accelaes::sized<accelaes_open_options>();
        options.library = words[3];
        options.threads = 1;
        auto allowed = 1e-4f;
        for (int k = 5; k < count; k += 2) {
            std::string name = words[k];
            const char* value = k + 1 < count ? words[k + 1] : "";
            if (name == "--within") {
                allowed = std::strtof(value, nullptr);
            } else if (name == "--allow-code") {
                options.allow_code = std::atoi(value);
            } else if (name == "--device") {
                options.device = value;
            } else if (name == "--engines") {
                options.engines = value;
            } else {
                throw accelaes::Error(ACCELAES_INPUT, (name + " is no option; golden.cpp lists them").c_str());
            }
        }
        accelaes::Bundle bundle(words[2], options);
        size_t settings = 0, steps = 0;
        float furthest = 0;
        for (const auto& entry : std::filesystem::directory_iterator(words[4])) {
            if (entry.path().extension() != ".safetensors") continue;
            Golden golden = read_golden(entry.path());
            auto made = carried_out(bundle, golden);
            ++settings, steps += made.size();
            if (writes) {
                write_steps(std::filesystem::path(entry.path()).replace_extension(".native"), made);
            } else {
                furthest = std::max(furthest, compare(entry.path().filename().string(), golden, made, allowed));
            }
        }
        if (settings == 0) throw accelaes::Error(ACCELAES_INPUT, "the folder has no *.safetensors");
        std::printf("%zu settings, %zu steps", settings, steps);
        if (!writes) std::printf(", at most %.1e apart", static_cast<double>(furthest));
        std::printf("\n");
        return 0;
    } catch (const accelaes::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return error.code;
    }
}
