#include <algorithm>
#include <cmath>

#include "failure.hpp"
#include "room.hpp"
#include "run.hpp"

namespace accelaes {

size_t bytes_of(const Spec& spec, int64_t rows, int64_t n, int64_t text) {
    size_t count = 1;
    for (const auto& size : spec.shape) {
        int64_t own = size.letter == 0     ? size.fixed
                      : size.letter == 'B' ? rows
                      : size.letter == 'n' ? n
                      : size.letter == 'M' ? text
                                           : -1;  // refused
        count = room({static_cast<int64_t>(count), own});
    }
    return width_of(spec.type) * count;
}

RunPlan::RunPlan(const Bundle& bundle, const accelaes_run_options& options) : preset(&bundle.preset(options.preset)) {
    const Manifest& manifest = bundle.manifest;
    int asked = options.steps;
    if (options.plan != nullptr) {
        symbols = options.plan;
        if (asked != 0 && asked != static_cast<int>(symbols.size())) {
            refuse("The plan has " + std::to_string(symbols.size()) + " steps and " + std::to_string(asked) +
                   " were asked for; give one of them.");
        }
    } else {
        asked = asked != 0 ? asked : preset->steps;
        auto plan = preset->plans.find(asked);
        if (plan == preset->plans.end()) {
            refuse("The preset " + preset->name + " has no plan of " + std::to_string(asked) +
                   " steps; it has plans of " + std::to_string(preset->plans.begin()->first) + " to " +
                   std::to_string(preset->plans.rbegin()->first) + ": ask for one of them.");
        }
        symbols = plan->second;
    }
    if (symbols.empty() || symbols.front() != 'D')
        refuse("The plan \"" + symbols + "\" doesn't begin with a dense step; begin it with D.");
    for (char symbol : symbols) {
        if (left_out_by(symbol) >= 0) {
            if (static_cast<size_t>(left_out_by(symbol)) < manifest.ranges.size()) continue;
            refuse("The plan \"" + symbols + "\" leaves out block range " + symbol + ", and the bundle has " +
                   std::to_string(manifest.ranges.size()) + "; build it with --block-ranges, or take another preset.");
        }
        bool sparse = symbol >= 'a' && symbol - 'a' + 1 < static_cast<int>(manifest.buckets.size());
        if (symbol != 'D' && symbol != '.' && !(sparse && preset->focus)) {
            refuse(std::string("The plan has the symbol '") + symbol + "', which the preset " + preset->name +
                   " or the bundle doesn't have; take D, " + (preset->focus ? "a letter of its buckets " : "") +
                   "or '.'.");
        }
    }
    int mask_step = preset->focus ? preset->focus->mask_step : -1;
    auto first_sparse = std::find_if(symbols.begin(), symbols.end(), [](char s) { return s >= 'a'; });
    auto dense = static_cast<int>(std::find_if(symbols.begin(), symbols.end(), [](char s) { return s != 'D'; }) -
                                  symbols.begin());
    if (mask_step >= dense && first_sparse != symbols.end()) {
        refuse("The plan \"" + symbols + "\" isn't dense up to step " + std::to_string(mask_step) +
               ", after which the preset's mask is built; begin it with more D.");
    }
    images = options.images == 0 ? 1 : options.images;
    if (images < 1 || images > manifest.batch) {
        refuse(std::to_string(images) + " images were asked for, and the bundle's engine takes 1 to " +
               std::to_string(manifest.batch) + "; make several runs, or build it with --batch.");
    }
    guided = !options.unguided && manifest.layout != Layout::none;
    two_calls = guided && manifest.layout == Layout::separate;
    rows = guided ? 2 * images : images;
    first_conditional = guided && manifest.layout == Layout::uncond_cond ? images : 0;
    gated = two_calls ? images : rows;
    seed = options.seed;
    scale = static_cast<float>(options.guidance == 0 ? manifest.guidance : options.guidance);
    if (options.sigmas == nullptr || options.timesteps == nullptr) {
        solver.emplace(manifest, steps());
        if (preset->by_sigma && solver->sigmas().empty())
            refuse("The preset " + preset->name + " counts sigmas, and the bundle's scheduler has none; take another.");
    } else {
        auto count = static_cast<std::ptrdiff_t>(symbols.size());
        solver.emplace(std::vector<float>(options.sigmas, options.sigmas + count + 1),
                       std::vector<float>(options.timesteps, options.timesteps + count));
    }
    if (!preset->sigmas.empty()) require_fitted();
}

// Learned coefficients are right for the plan and the noise levels that they were fitted to, and for no others.
void RunPlan::require_fitted() const {
    constexpr double tolerance = 1e-3;
    if (symbols != preset->plans.begin()->second) {
        refuse("The preset " + preset->name + " has coefficients for the plan " + preset->plans.begin()->second +
               " and the run has " + symbols + "; leave the plan to the preset, or take another preset.");
    }
    bool same = solver->by_euler() && solver->sigmas().size() == preset->sigmas.size();
    for (size_t k = 0; same && k < preset->sigmas.size(); ++k)
        same = std::abs(solver->sigmas()[k] - preset->sigmas[k]) <= tolerance * preset->sigmas.front();
    if (!same) {
        refuse("The preset " + preset->name +
               " has coefficients for other noise levels than the run's; give those it was fitted to, or take another "
               "preset.");
    }
}

int64_t RunPlan::latent(const Manifest& manifest) const {
    int64_t numbers = 1;
    for (int64_t size : manifest.latent_shape) numbers = static_cast<int64_t>(room({numbers, size}));
    return numbers;
}

int64_t RunPlan::focus_of(char symbol, const Manifest& manifest) const {
    if (symbol == '.') return 0;
    return symbol < 'a' ? manifest.tokens : manifest.buckets[static_cast<size_t>(symbol - 'a')];
}

int64_t RunPlan::most_focus(const Manifest& manifest) const {
    int64_t most = 0;
    for (char symbol : symbols) most = std::max(most, symbol < 'a' ? 0 : focus_of(symbol, manifest));
    return most;
}

int64_t RunPlan::most_background(const Manifest& manifest) const {
    int64_t most = 0;
    for (char symbol : symbols) {
        if (symbol >= 'a') most = std::max(most, manifest.tokens - focus_of(symbol, manifest));
    }
    return most;
}

std::set<size_t> RunPlan::left_out() const {
    std::set<size_t> found;
    for (char symbol : symbols) {
        if (left_out_by(symbol) >= 0) found.insert(static_cast<size_t>(left_out_by(symbol)));
    }
    return found;
}

size_t RunPlan::bytes(const Manifest& manifest) const {
    int64_t N = manifest.tokens, w = manifest.token_width(), n = most_focus(manifest), m = most_background(manifest);
    size_t numbers = room({images + rows, latent(manifest)}) + room({rows, 2 * N + n + m, w}) + room({images, N, w});
    numbers += room({4 * rows + 3 * images, N}) + room({rows, manifest.text_tokens + 2});
    size_t kept = solver->bytes(room({images, latent(manifest)})), converted = 0;
    auto converts = [&](const std::vector<Spec>& specs, const char* name, int64_t own) {
        for (const auto& spec : specs) {
            if (spec.name == name && spec.type != Type::f32) converted += width_of(spec.type) * room({rows, own});
        }
    };
    for (size_t k : left_out()) {
        for (const auto& spec : manifest.ranges[k].changes)
            converted += bytes_of(spec, rows, manifest.tokens, manifest.text_tokens);
    }
    converts(manifest.inputs, "hidden_states", latent(manifest));
    converts(manifest.outputs, "focus_prediction", static_cast<int64_t>(room({N, w})));
    converts(manifest.outputs, "background_prediction", static_cast<int64_t>(room({m, w})));
    return kept + converted + Programs::bytes(*preset, rows, gated) +
           Cache::bytes(manifest, rows, n, m, preset->has("carry")) + sizeof(float) * numbers +
           sizeof(int64_t) * room({3 * rows + images, N});
}

size_t RunPlan::host_bytes(const Manifest& manifest) const {
    return sizeof(float) * room({images, latent(manifest)}) + sizeof(int64_t) * room({images, most_focus(manifest)});
}

}  // namespace accelaes
