#include "manifest.hpp"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "failure.hpp"
#include "manifest_reading.hpp"
#include "room.hpp"
#include "whole_numbers.hpp"

namespace accelaes {
namespace {

using nlohmann::json;

constexpr int schema_version = 12;
constexpr std::streamoff largest = 64 << 20;  // bytes; manifests have less than one

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
    if (given.at("options").contains("learned")) {
        preset.sigmas = given.at("options").at("learned").at("sigmas").get<std::vector<double>>();
        if (preset.plans.size() != 1 || static_cast<size_t>(preset.plans.begin()->first) + 1 != preset.sigmas.size()) {
            refuse("The preset " + preset.name + " has coefficients of another plan; build the bundle again.");
        }
    }
    preset.words = {given.at("words").at("threshold"), given.at("words").at("scope")};
    if (!given.at("focus").is_null()) {
        const auto& focus = given.at("focus");
        FocusChoice choice{focus.at("moving"), -1, focus.at("fraction")};
        if (!focus.at("mask_step").is_null()) choice.mask_step = static_cast<int>(count_of(focus, "mask_step"));
        if (!(choice.fraction > 0 && choice.fraction <= 1) || choice.mask_step < -1) {
            refuse("The preset " + preset.name + " has a mask that is none; build the bundle again.");
        }
        preset.focus = choice;
    }
    preset.state = specs_of(given.at("state"));
    for (const auto& [name, program] : given.at("programs").items()) {
        preset.programs[name] = program_of(program);
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
    manifest.size_height = static_cast<int64_t>(room({manifest.height, count_of(latents, "vae_scale")}));
    manifest.size_width = static_cast<int64_t>(room({manifest.width, count_of(latents, "vae_scale")}));
    manifest.patch_frames = count_of(latents, "patch_frames");
    manifest.packed = latents.at("packed");
    manifest.video = !latents.at("frames").is_null();
    manifest.frames = manifest.video ? count_of(latents, "frames") : 1;
    manifest.batch = count_of(contract, "batch");
    manifest.tokens = count_of(contract, "tokens");
    manifest.text_tokens = count_of(contract, "text_tokens");
    manifest.dynamic_text = contract.at("dynamic_text");
    for (const auto& bucket : contract.at("buckets")) manifest.buckets.push_back(whole(bucket));
    manifest.inputs = specs_of(contract.at("inputs"));
    manifest.outputs = specs_of(contract.at("outputs"));
    manifest.conditioning = contract.at("conditioning").get<std::vector<std::string>>();
    for (const auto& entry : contract.at("cache")) {
        std::string name = entry.at("name");
        auto spec = std::find_if(manifest.outputs.begin(), manifest.outputs.end(),
                                 [&](const Spec& output) { return output.name == name; });
        Type type = spec == manifest.outputs.end() ? Type::f32 : spec->type;
        manifest.cache.push_back({name, type, count_of(entry, "heads"), count_of(entry, "head_dim")});
    }
    const auto& without = geometry.at("without");
    for (size_t k = 0; k < without.size(); ++k) {
        const auto& contract_without = without.at(k).at("contract");
        BlockRange range{specs_of(contract.at("ranges").at(k).at("changes")),
                         {{}, specs_of(contract_without.at("inputs")), specs_of(contract_without.at("outputs"))}};
        std::string folder = without.at(k).at("folder");
        for (const auto& name : without.at(k).at("files"))
            range.engine.files.push_back(folder + "/" + name.get<std::string>());
        if (range.engine.files.empty()) refuse("The bundle has a range of blocks without its engine; build it again.");
        manifest.ranges.push_back(std::move(range));
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
    int64_t schema = whole(given.at("schema_version"));
    if (schema != schema_version) {
        refuse("Bundle " + folder + " has schema " + std::to_string(schema) + ", and this library reads schema " +
               std::to_string(schema_version) + ": build the bundle with the release this library is of.");
    }
    Manifest manifest;
    manifest.backend = given.at("backend").at("name");
    manifest.built_with = given.at("backend").at("versions").get<std::map<std::string, std::string>>();
    manifest.engine_files = given.at("backend").at("files").get<std::vector<std::string>>();
    if (manifest.engine_files.empty()) refuse("The bundle has no engine; build it again.");
    for (const auto& [name, file] : given.at("files").items()) {
        manifest.files.push_back({name, file.at("sha256"), static_cast<uint64_t>(whole(file.at("size")))});
    }
    manifest.layout = layout_of(given.at("call").at("guidance").at("layout"));
    manifest.steps = static_cast<int>(count_of(given.at("defaults"), "steps"));
    manifest.guidance = given.at("defaults").at("guidance");
    read_geometry(manifest, given.at("geometries").at(0));
    for (const auto& one : given.at("text")) {
        TextRun run{one.at("tokenizers"), count_of(one, "length"), one.at("template") != "{}" || one.at("drop") != 0};
        manifest.text.push_back(std::move(run));
    }
    manifest.anchors = given.at("anchors").get<std::vector<std::string>>();
    manifest.scored_by_clip = given.at("token_scorer") == "clip";
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
