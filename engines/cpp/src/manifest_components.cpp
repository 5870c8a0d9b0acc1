// What a manifest says of the pipeline around the transformer.
#include "failure.hpp"
#include "manifest_reading.hpp"

namespace accelaes {

using nlohmann::json;

namespace {

Scheduler scheduler_of(const json& components) {
    Scheduler scheduler;
    const auto& index = components.at("pipeline");
    const auto& config = components.at("scheduler");
    std::string pipeline = index.at("_class_name"), kind = index.at("scheduler").at(1);
    bool flux = pipeline.rfind("Flux", 0) == 0;
    if (kind != "FlowMatchEulerDiscreteScheduler") {
        scheduler.unknown = kind;
        return scheduler;
    }
    if (!flux && pipeline.rfind("StableDiffusion3", 0) != 0) {
        scheduler.unknown = "sigmas as " + pipeline + " gives them to its scheduler";
        return scheduler;
    }
    auto on = [&](const char* option) {
        auto found = config.find(option);
        return found != config.end() && !found->is_null() && *found != false && *found != 0;
    };
    auto number = [&](const char* option, double otherwise) {
        auto found = config.find(option);
        return found == config.end() || found->is_null() ? otherwise : found->get<double>();
    };
    if (on("stochastic_sampling")) scheduler.unknown = kind + " with stochastic_sampling";
    scheduler.from_one = scheduler.called_by_sigma = flux;
    scheduler.shift = number("shift", 1);
    scheduler.train = number("num_train_timesteps", 1000);
    scheduler.dynamic = on("use_dynamic_shifting");
    scheduler.linear = config.value("time_shift_type", "exponential") == "linear";
    scheduler.base_shift = number("base_shift", 0.5);
    scheduler.max_shift = number("max_shift", 1.15);
    scheduler.base_tokens = number("base_image_seq_len", 256);
    scheduler.max_tokens = number("max_image_seq_len", 4096);
    scheduler.terminal = number("shift_terminal", 0);
    scheduler.inverted = on("invert_sigmas");
    scheduler.kind = on("use_karras_sigmas")        ? Scheduler::Kind::karras
                     : on("use_exponential_sigmas") ? Scheduler::Kind::exponential
                     : on("use_beta_sigmas")        ? Scheduler::Kind::beta
                                                    : Scheduler::Kind::even;
    if (!(scheduler.shift > 0 && scheduler.shift < 1e6) || !(scheduler.train >= 1 && scheduler.train < 1e9) ||
        scheduler.base_tokens == scheduler.max_tokens)
        refuse("The bundle's scheduler has a shift or a number of timesteps that is none; build it again.");
    return scheduler;
}

}  // namespace

void read_components(Manifest& manifest, const json& given) {
    const json nothing;
    const auto& components = given.contains("components") ? given.at("components") : nothing;
    const auto& geometry = given.at("geometries").at(0);
    if (components.is_object()) {
        manifest.scheduler = scheduler_of(components);
        std::string cleaning = components.at("cleaning");
        manifest.cleaning = cleaning == "none"    ? Cleaning::none
                            : cleaning == "lower" ? Cleaning::lower
                                                  : Cleaning::other;
        for (const auto& [name, one] : components.at("tokenizers").items()) {
            if (!one.at("portable").is_null()) manifest.tokenizers[name] = one.at("portable");
        }
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

}  // namespace accelaes
