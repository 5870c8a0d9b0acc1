#include "manifest.hpp"

#include <fstream>
#include <sstream>

#include <nlohmann/json.hpp>

#include "failure.hpp"

namespace accelaes {
namespace {

using nlohmann::json;

constexpr int schema_version = 7;
constexpr std::streamoff largest = 64 << 20;  // bytes; manifests have less than one

Size size_of(const json& given) {
    if (given.is_string()) {
        auto letter = given.get<std::string>();
        if (letter.size() != 1) throw json::type_error::create(302, "a shape's letter is " + letter, &given);
        return {letter[0], 0};
    }
    auto fixed = given.get<int64_t>();
    if (fixed < 1 || fixed > INT32_MAX) throw json::type_error::create(302, "a shape has a size out of range", &given);
    return {0, fixed};
}

std::vector<Spec> specs_of(const json& given) {
    std::vector<Spec> specs;
    for (const auto& one : given) {
        Spec spec{one.at("name"), one.at("dtype") == "int64", {}};
        if (spec.name.empty()) throw json::type_error::create(302, "a tensor has no name", &one);
        if (!spec.int64 && one.at("dtype") != "fp32") {
            refuse("The bundle's tensor " + spec.name + " is " + one.at("dtype").get<std::string>() +
                   ", and this runtime takes fp32 engines: build the bundle with --dtype fp32.");
        }
        for (const auto& size : one.at("shape")) spec.shape.push_back(size_of(size));
        specs.push_back(std::move(spec));
    }
    return specs;
}

int64_t count_of(const json& given, const char* name) {
    auto count = given.at(name).get<int64_t>();
    if (count < 0 || count > INT32_MAX)
        throw json::type_error::create(302, std::string(name) + " is out of range", &given);
    return count;
}

Program program_of(const json& given) {
    Program program{given.at("files").at(0), specs_of(given.at("inputs")), specs_of(given.at("outputs"))};
    if (program.inputs.empty() || program.outputs.empty())
        throw json::type_error::create(302, "a component has no tensors", &given);
    return program;
}

Scheduler scheduler_of(const json& components) {
    Scheduler scheduler;
    const auto& index = components.at("pipeline");
    const auto& config = components.at("scheduler");
    std::string pipeline = index.at("_class_name"), kind = index.at("scheduler").at(1);
    if (kind != "FlowMatchEulerDiscreteScheduler") {
        scheduler.unknown = kind;
        return scheduler;
    }
    if (pipeline.rfind("StableDiffusion3", 0) != 0) {
        scheduler.unknown = "sigmas as " + pipeline + " gives them to its scheduler";
        return scheduler;
    }
    for (const char* option : {"use_dynamic_shifting", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas",
                               "use_beta_sigmas", "stochastic_sampling", "shift_terminal"}) {
        auto found = config.find(option);
        bool off = found == config.end() || found->is_null() || *found == false || *found == 0;
        if (!off) scheduler.unknown = kind + " with " + option;
    }
    scheduler.shift = config.value("shift", 1.0);
    scheduler.train = config.value("num_train_timesteps", 1000.0);
    if (!(scheduler.shift > 0 && scheduler.shift < 1e6) || !(scheduler.train >= 1 && scheduler.train < 1e9))
        refuse("The bundle's scheduler has a shift or a number of timesteps that is none; build it again.");
    return scheduler;
}

// What the bundle has of the pipeline around the transformer.
void read_components(Manifest& manifest, const json& given) {
    const json nothing;
    const auto& components = given.contains("components") ? given.at("components") : nothing;
    const auto& geometry = given.at("geometries").at(0);
    if (components.is_object()) {
        manifest.scheduler = scheduler_of(components);
        for (const auto& [name, one] : components.at("encoders").items()) {
            Encoder encoder{name,
                            one.at("tokenizer"),
                            one.at("masked"),
                            count_of(one, "length"),
                            count_of(one, "rows"),
                            program_of(one.at("graph"))};
            if (encoder.rows < 1 || encoder.length < 1)
                refuse("The bundle's " + name + " takes no text; build it again.");
            manifest.encoders.push_back(std::move(encoder));
        }
        if (!components.at("conditioning").is_null()) manifest.conditioned = program_of(components.at("conditioning"));
        if (manifest.conditioned.has_value() == manifest.encoders.empty())
            refuse("The bundle has text encoders without what becomes of them; build it again.");
    }
    if (!geometry.contains("vae") || geometry.at("vae").is_null()) return;
    const auto& vae = geometry.at("vae");
    manifest.vae = Vae{program_of(vae.at("latents")), program_of(vae.at("decoder")), count_of(vae, "rows")};
    std::vector<int64_t> taken, made;
    for (const auto& size : manifest.vae->latents.inputs[0].shape) taken.push_back(size.fixed);
    for (const auto& spec : manifest.vae->decoder.outputs) {
        if (spec.name != "image") continue;
        for (const auto& size : spec.shape) made.push_back(size.fixed);
    }
    std::vector<int64_t> wanted = manifest.latent_shape;
    wanted.insert(wanted.begin(), 0);
    if (manifest.vae->rows < 1 || taken != wanted || made.size() != 4 || made[3] != 3 || made[1] < 1 || made[2] < 1)
        refuse("The bundle's VAE is for other latents than its engine's; build it again.");
    manifest.picture_height = made[1], manifest.picture_width = made[2];
}

Preset preset_of(const json& given) {
    Preset preset;
    preset.name = given.at("name");
    preset.steps = static_cast<int>(count_of(given, "steps"));
    for (const auto& [steps, symbols] : given.at("plans").items()) preset.plans[std::stoi(steps)] = symbols;
    for (const auto& [steps, symbols] : preset.plans) {
        if (static_cast<int>(symbols.size()) != steps) {
            refuse("The preset " + preset.name + " has a plan of " + std::to_string(symbols.size()) + " steps for " +
                   std::to_string(steps) + "; build the bundle again.");
        }
    }
    if (preset.plans.empty()) refuse("The preset " + preset.name + " has no plan; build the bundle again.");
    std::string clock = given.at("clock");
    preset.by_sigma = clock == "sigma";
    preset.theta = given.at("theta");
    if ((clock != "sigma" && clock != "step") || !(preset.theta >= 0 && preset.theta <= 1)) {
        refuse("The preset " + preset.name + " has a clock or theta that is none; build the bundle again.");
    }
    if (!given.at("focus").is_null()) {
        const auto& focus = given.at("focus");
        FocusChoice choice{focus.at("moving"), -1, focus.at("fraction")};
        if (!focus.at("mask_step").is_null()) choice.mask_step = focus.at("mask_step");
        if (!(choice.fraction > 0 && choice.fraction <= 1) || choice.mask_step < -1) {
            refuse("The preset " + preset.name + " has a mask that is none; build the bundle again.");
        }
        preset.focus = choice;
    }
    preset.state = specs_of(given.at("state"));
    for (const auto& [name, program] : given.at("programs").items()) {
        preset.programs[name] = {program.at("files").at(0), specs_of(program.at("inputs")),
                                 specs_of(program.at("outputs"))};
    }
    for (const char* needed : {"advance", "extrapolate", "guide"}) {
        if (!preset.has(needed))
            refuse("The preset " + preset.name + " lacks the program " + needed + "; build the bundle again.");
    }
    if (preset.focus && !(preset.has("score") && preset.has("advance_focus"))) {
        refuse("The preset " + preset.name + " has sparse steps and no programs for them; build the bundle again.");
    }
    return preset;
}

Layout layout_of(const std::string& name) {
    if (name == "uncond_cond") return Layout::uncond_cond;
    if (name == "cond_uncond") return Layout::cond_uncond;
    if (name == "separate") return Layout::separate;
    if (name == "none") return Layout::none;
    refuse("The bundle guides by \"" + name + "\", which this release doesn't know; install a newer one.");
}

void read_geometry(Manifest& manifest, const json& geometry) {
    const auto& latents = geometry.at("latents");
    const auto& contract = geometry.at("contract");
    manifest.channels = count_of(latents, "channels");
    manifest.out_channels = count_of(latents, "out_channels");
    manifest.height = count_of(latents, "height");
    manifest.width = count_of(latents, "width");
    manifest.patch = count_of(latents, "patch");
    manifest.patch_frames = count_of(latents, "patch_frames");
    manifest.packed = latents.at("packed");
    manifest.video = !latents.at("frames").is_null();
    manifest.frames = manifest.video ? count_of(latents, "frames") : 1;
    manifest.batch = count_of(contract, "batch");
    manifest.tokens = count_of(contract, "tokens");
    manifest.text_tokens = count_of(contract, "text_tokens");
    manifest.dynamic_text = contract.at("dynamic_text");
    manifest.buckets = contract.at("buckets").get<std::vector<int64_t>>();
    manifest.inputs = specs_of(contract.at("inputs"));
    manifest.outputs = specs_of(contract.at("outputs"));
    manifest.conditioning = contract.at("conditioning").get<std::vector<std::string>>();
    for (const auto& entry : contract.at("cache")) {
        manifest.cache.push_back({entry.at("name"), count_of(entry, "heads"), count_of(entry, "head_dim")});
    }
    if (manifest.packed) {
        manifest.latent_shape = {manifest.tokens, manifest.patch * manifest.patch * manifest.channels};
    } else if (manifest.video) {
        manifest.latent_shape = {manifest.channels, manifest.frames, manifest.height, manifest.width};
    } else {
        manifest.latent_shape = {manifest.channels, manifest.height, manifest.width};
    }
    bool ascending =
        !manifest.buckets.empty() && manifest.buckets.back() == manifest.tokens && manifest.buckets.front() > 0;
    for (size_t k = 1; k < manifest.buckets.size(); ++k)
        ascending = ascending && manifest.buckets[k - 1] < manifest.buckets[k];
    int64_t cells = manifest.patch == 0 || manifest.patch_frames == 0
                        ? 0
                        : (manifest.height / manifest.patch) * (manifest.width / manifest.patch) *
                              (manifest.frames / manifest.patch_frames);
    if (!ascending || cells != manifest.tokens || manifest.batch < 1) {
        refuse("The bundle's manifest contradicts itself about its tokens; build it again.");
    }
    // Steps move latents by predictions, number by number.
    bool whole = manifest.height % manifest.patch == 0 && manifest.width % manifest.patch == 0 &&
                 manifest.frames % manifest.patch_frames == 0 && manifest.channels == manifest.out_channels;
    for (const auto& spec : manifest.inputs) {
        if (spec.name != "hidden_states") continue;
        whole = whole && spec.shape.size() == manifest.latent_shape.size() + 1;
        for (size_t axis = 1; whole && axis < spec.shape.size(); ++axis) {
            whole = spec.shape[axis].fixed == manifest.latent_shape[axis - 1];
        }
    }
    if (!whole) refuse("The bundle's latents and predictions have different sizes, which this runtime doesn't take.");
    for (const auto& preset : geometry.at("presets")) manifest.presets.push_back(preset_of(preset));
}

Manifest manifest_of(const json& given, const std::string& folder) {
    int schema = given.at("schema_version");
    if (schema != schema_version) {
        refuse("Bundle " + folder + " has schema " + std::to_string(schema) + ", and this library reads schema " +
               std::to_string(schema_version) + ": build the bundle with the release this library is of.");
    }
    Manifest manifest;
    manifest.backend = given.at("backend").at("name");
    manifest.engine_file = given.at("backend").at("files").at(0);
    for (const auto& [name, file] : given.at("files").items()) {
        manifest.files.push_back({name, file.at("sha256"), file.at("size").get<uint64_t>()});
    }
    manifest.layout = layout_of(given.at("call").at("guidance").at("layout"));
    manifest.steps = static_cast<int>(count_of(given.at("defaults"), "steps"));
    manifest.guidance = given.at("defaults").at("guidance");
    read_geometry(manifest, given.at("geometries").at(0));
    read_components(manifest, given);
    return manifest;
}

}  // namespace

Manifest read_manifest(const std::string& folder) {
    std::string path = folder + "/manifest.json";
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file)
        refuse(folder + " is not a bundle: it has no manifest.json; give the folder that accelaes-export build wrote.");
    if (file.tellg() > largest) refuse(path + " is too large for a manifest; build the bundle again.");
    file.seekg(0);
    try {
        return manifest_of(json::parse(file), folder);
    } catch (const json::exception& error) {
        refuse(path + " is damaged (" + error.what() + "); build the bundle again.");
    } catch (const std::logic_error& error) {  // a plan's number of steps that is none
        refuse(path + " is damaged (" + error.what() + "); build the bundle again.");
    }
}

}  // namespace accelaes
