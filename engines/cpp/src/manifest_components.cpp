// What a manifest says of the pipeline around the transformer.
#include "failure.hpp"
#include "manifest_reading.hpp"

namespace accelaes {

using nlohmann::json;

namespace {

// Whether an option of a scheduler is there and isn't off.
bool is_on(const json& config, const char* option) {
    auto found = config.find(option);
    return found != config.end() && !found->is_null() && *found != false && *found != 0;
}

double number_of(const json& config, const char* option, double otherwise) {
    auto found = config.find(option);
    return found == config.end() || found->is_null() ? otherwise : found->get<double>();
}

int64_t count_or(const json& config, const char* option, int64_t otherwise) {
    auto found = config.find(option);
    return found == config.end() || found->is_null() ? otherwise : count_of(config, option);
}

// One of an option's values by its name; the first where the config says nothing.
template <typename Value>
Value choice_of(const json& config, const char* option, const std::vector<std::pair<const char*, Value>>& known,
                Scheduler& scheduler) {
    auto found = config.find(option);
    if (found == config.end() || found->is_null()) return known.front().second;
    for (const auto& [name, value] : known) {
        if (*found == name) return value;
    }
    scheduler.unknown += std::string(scheduler.unknown.empty() ? "" : ", ") + option + " " + found->dump();
    return known.front().second;
}

void read_diffusion(const json& config, const std::string& kind, Scheduler& scheduler) {
    using Betas = Diffusion::Betas;
    using Spacing = Diffusion::Spacing;
    using Prediction = Diffusion::Prediction;
    Diffusion of;
    of.ddim = kind == "DDIMScheduler";
    of.betas = choice_of<Betas>(
        config, "beta_schedule",
        {{"linear", Betas::linear}, {"scaled_linear", Betas::scaled_linear}, {"squaredcos_cap_v2", Betas::cosine}},
        scheduler);
    std::pair<const char*, Spacing> linspace = {"linspace", Spacing::linspace}, leading = {"leading", Spacing::leading};
    of.spacing = choice_of<Spacing>(
        config, "timestep_spacing",
        {of.ddim ? leading : linspace, of.ddim ? linspace : leading, {"trailing", Spacing::trailing}}, scheduler);
    of.prediction = choice_of<Prediction>(
        config, "prediction_type",
        {{"epsilon", Prediction::noise}, {"sample", Prediction::sample}, {"v_prediction", Prediction::velocity}},
        scheduler);
    choice_of<int>(config, "algorithm_type", {{"dpmsolver++", 0}}, scheduler);
    of.heun = choice_of<bool>(config, "solver_type", {{"midpoint", false}, {"heun", true}}, scheduler);
    of.ends_at_zero = choice_of<bool>(config, "final_sigmas_type", {{"zero", true}, {"sigma_min", false}}, scheduler);
    for (const char* option :
         {"trained_betas", "thresholding", "rescale_betas_zero_snr", "use_karras_sigmas", "use_exponential_sigmas",
          "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting", "lambda_min_clipped"}) {
        if (is_on(config, option)) scheduler.unknown += (scheduler.unknown.empty() ? "" : ", ") + std::string(option);
    }
    if (!scheduler.unknown.empty()) scheduler.unknown = kind + " with " + scheduler.unknown;
    scheduler.train = number_of(config, "num_train_timesteps", 1000);
    of.beta_start = number_of(config, "beta_start", 1e-4);
    of.beta_end = number_of(config, "beta_end", 0.02);
    of.offset = count_or(config, "steps_offset", 0);
    of.alpha_to_one = config.value("set_alpha_to_one", true);
    if (of.ddim && config.value("clip_sample", true)) of.clipped_to = number_of(config, "clip_sample_range", 1);
    of.order = of.ddim ? 1 : count_or(config, "solver_order", 2);
    if (of.order > 2 && scheduler.unknown.empty())
        scheduler.unknown = kind + " of the order " + std::to_string(of.order);
    of.lower_at_end = config.value("lower_order_final", true);
    of.euler_at_end = is_on(config, "euler_at_final");
    bool betas = of.beta_start > 0 && of.beta_start < of.beta_end && of.beta_end < 1;
    if (!(scheduler.train >= 2 && scheduler.train <= 1e6) || !betas || of.order < 1 || of.offset < 0 ||
        of.offset > 1000)
        refuse("The bundle's scheduler has betas, timesteps or an order that is none; build it again.");
    scheduler.diffusion = of;
}

Scheduler scheduler_of(const json& components) {
    Scheduler scheduler;
    const auto& index = components.at("pipeline");
    const auto& config = components.at("scheduler");
    std::string pipeline = index.at("_class_name"), kind = index.at("scheduler").at(1);
    auto is_of = [&](const char* family) { return pipeline.rfind(family, 0) == 0; };
    if (kind == "DDIMScheduler" || kind == "DPMSolverMultistepScheduler") {
        if (is_of("PixArt") || is_of("DiT"))
            read_diffusion(config, kind, scheduler);
        else
            scheduler.unknown = kind + " as " + pipeline + " calls it";
        return scheduler;
    }
    if (kind != "FlowMatchEulerDiscreteScheduler") {
        scheduler.unknown = kind;
        return scheduler;
    }
    bool by_sigma = is_of("Flux") || is_of("QwenImage"), from_one = by_sigma || is_of("LTX");
    if (!from_one && !is_of("StableDiffusion3")) {
        scheduler.unknown = "sigmas as " + pipeline + " gives them to its scheduler";
        return scheduler;
    }
    auto on = [&](const char* option) { return is_on(config, option); };
    auto number = [&](const char* option, double otherwise) { return number_of(config, option, otherwise); };
    if (on("stochastic_sampling")) scheduler.unknown = kind + " with stochastic_sampling";
    scheduler.from_one = from_one, scheduler.called_by_sigma = by_sigma;
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
    if (made.size() == 4) made.insert(made.begin() + 1, 1);  // a picture is a video of one frame
    if (manifest.vae->rows < 1 || taken != wanted || made.size() != 5 || made[4] != 3 ||
        std::any_of(made.begin() + 1, made.end(), [](int64_t size) { return size < 1; }))
        refuse("The bundle's VAE is for other latents than its engine's; build it again.");
    manifest.picture_frames = made[1], manifest.picture_height = made[2], manifest.picture_width = made[3];
}

}  // namespace accelaes
