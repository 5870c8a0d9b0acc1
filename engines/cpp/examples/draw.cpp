// A picture of a prompt: accelaes_draw BUNDLE PROMPT [--output draw.png] [--preset NAME] [--steps T] [--seed S]
//     [--guidance SCALE] [--negative PROMPT] [--library LIBRARY] [--threads COUNT] [--allow-code 1]
#include <accelaes.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>

#include "png.hpp"

namespace {

using Options = std::map<std::string, std::string>;

Options read(int count, char** words) {
    Options given = {{"--output", "draw.png"}};
    const char* const known[] = {"--output",   "--preset",  "--steps",   "--seed",      "--guidance",
                                 "--negative", "--library", "--threads", "--allow-code"};
    if (count < 3) throw accelaes::Error(ACCELAES_INPUT, "give a bundle and a prompt: accelaes_draw BUNDLE PROMPT");
    for (int k = 3; k < count; k += 2) {
        std::string name = words[k];
        if (std::find(std::begin(known), std::end(known), name) == std::end(known) || k + 1 == count) {
            std::string said = name + (k + 1 == count ? " has no value" : " is no option");
            throw accelaes::Error(ACCELAES_INPUT, (said + "; the first lines of draw.cpp list them").c_str());
        }
        given[name] = words[k + 1];
    }
    return given;
}

void draw(const char* folder, const char* text, const Options& given) {
    auto word = [&](const char* name) {
        auto found = given.find(name);
        return found == given.end() ? nullptr : found->second.c_str();
    };
    auto number = [&](const char* name) { return word(name) == nullptr ? 0.0 : std::atof(word(name)); };
    auto opening = accelaes::sized<accelaes_open_options>();
    opening.library = word("--library");
    opening.threads = static_cast<int>(number("--threads"));
    opening.allow_code = number("--allow-code") != 0;
    accelaes::Bundle bundle(folder, opening);

    auto options = accelaes::sized<accelaes_run_options>();
    options.preset = word("--preset");
    options.steps = static_cast<int>(number("--steps"));
    options.guidance = number("--guidance");
    options.seed = word("--seed") == nullptr ? 0 : std::strtoull(word("--seed"), nullptr, 10);
    auto run = bundle.run(options);
    auto prompt = accelaes::sized<accelaes_prompt>();
    prompt.text = text;
    prompt.negative = word("--negative");
    run.prompt({prompt});

    std::string plan;
    std::map<char, std::vector<accelaes_step>> kinds;
    for (bool more = true; more;) {
        auto [step, left] = run.next();
        plan += step.symbol;
        kinds[step.symbol].push_back(step);
        more = left;
    }
    std::printf("%s\n\nstep   count      n  median ms   total ms\n", plan.c_str());
    double all = 0;
    for (auto& [symbol, steps] : kinds) {
        double total = 0;
        for (const auto& step : steps) total += step.seconds;
        std::sort(steps.begin(), steps.end(), [](const auto& a, const auto& b) { return a.seconds < b.seconds; });
        double median = steps[steps.size() / 2].seconds;
        std::printf("%c     %6zu %6d %10.1f %10.1f\n", symbol, steps.size(), steps[0].tokens, 1e3 * median,
                    1e3 * total);
        all += total;
    }
    std::printf("all   %6zu %28.1f\n", plan.size(), 1e3 * all);
    for (const auto& [own, weight] : run.words()) std::printf("%s %.2f\n", own.c_str(), weight);

    auto facts = bundle.facts();
    auto pixels = run.picture(accelaes::picture_bytes(facts));
    for (int frame = 0; frame < facts.picture_frames; ++frame) {
        std::string path = given.at("--output");  // of a video, a file for every frame: out.png becomes out-0.png, ...
        if (facts.picture_frames > 1) path.insert(std::min(path.rfind('.'), path.size()), "-" + std::to_string(frame));
        const auto* first = pixels.data() + pixels.size() / static_cast<size_t>(facts.picture_frames) * frame;
        std::ofstream file(path, std::ios::binary);
        file << png(first, facts.picture_width, facts.picture_height) << std::flush;
        if (!file) throw accelaes::Error(ACCELAES_FAILED, (path + " can't be written").c_str());
        std::printf("Wrote %s\n", path.c_str());
    }
}

}  // namespace

int main(int count, char** words) {
    try {
        draw(words[1], words[2], read(count, words));
    } catch (const accelaes::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return error.code;
    }
}
