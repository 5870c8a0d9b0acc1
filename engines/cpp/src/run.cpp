#include "run.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "failure.hpp"
#include "patches.hpp"
#include "room.hpp"
#include "rows.hpp"

namespace accelaes {

Run::Run(std::shared_ptr<const Bundle> bundle, RunPlan plan)
    : bundle_(std::move(bundle)),
      manifest_(bundle_->manifest),
      plan_(std::move(plan)),
      programs_(*bundle_, *plan_.preset, plan_.rows, plan_.images, plan_.first_conditional, plan_.gated),
      cache_(manifest_, plan_.rows, plan_.most_focus(manifest_), plan_.most_background(manifest_),
             plan_.preset->has("carry")) {
    auto rows = static_cast<size_t>(plan_.rows), images = static_cast<size_t>(plan_.images);
    auto N = static_cast<size_t>(manifest_.tokens), w = static_cast<size_t>(manifest_.token_width());
    int64_t width = manifest_.token_width(), tokens = manifest_.tokens, latent = plan_.latent(manifest_);
    latents_.resize(room({plan_.images, latent}));
    plan_.solver->begin(latents_.size());  // takes its memory
    twice_.resize(room({plan_.rows, latent}));
    timestep_.resize(rows);
    computed_.resize(room({plan_.rows, tokens, width}));
    predicted_.resize(computed_.size());
    guided_.resize(room({plan_.images, tokens, width}));
    focus_rows_.resize(room({plan_.rows, plan_.most_focus(manifest_), width}));
    background_rows_.resize(room({plan_.rows, plan_.most_background(manifest_), width}));
    for (auto* of_tokens : {&running_, &cached_, &distance_, &affinity_rows_})
        of_tokens->resize(room({plan_.rows, tokens}));
    for (auto* of_images : {&affinity_, &mask_, &score_}) of_images->resize(room({plan_.images, tokens}));
    everything_.resize(running_.size());
    observed_.resize(running_.size());
    order_.reserve(N);
    for (size_t k = 0; k < rows * N; ++k) everything_[k] = observed_[k] = static_cast<int64_t>(k % N);
    for (char symbol : plan_.symbols) {
        if (symbol < 'a') continue;
        Sets& sets = sets_[symbol];
        sets.n = plan_.focus_of(symbol, manifest_);
        sets.focus.resize(rows * static_cast<size_t>(sets.n));
        sets.background.resize(rows * (N - static_cast<size_t>(sets.n)));
    }
    shown_focus_.reserve(images * N);
    size_t half = images * N * w, uncond = manifest_.layout == Layout::uncond_cond ? 0 : half;
    programs_.place("computed", computed_.data());
    programs_.place("running", running_.data());
    programs_.place("cached", cached_.data());
    programs_.place("now", &now_);
    programs_.place("target", &target_);
    programs_.place("predicted", predicted_.data());
    programs_.place("score", score_.data());
    programs_.place("affinity", affinity_.data());
    programs_.place("mask", mask_.data());
    programs_.place("distance", distance_.data());
    programs_.place("scale", &plan_.scale);
    programs_.place("uncond", predicted_.data() + (plan_.guided ? uncond : 0));
    programs_.place("cond", predicted_.data() + (plan_.guided ? half - uncond : 0));
    programs_.place("guided", guided_.data());
    programs_.place("latents", twice_.data());
    programs_.place("prediction", predicted_.data());
    programs_.place("step", &step_);
    programs_.place("wanted", &wanted_);
    programs_.bind();
}

void Run::picture(uint8_t* pixels, size_t size) const {
    if (!manifest_.vae)
        refuse(
            "The bundle has no VAE to make pictures with; take the latents, or build it again with --components vae.");
    size_t wanted = room({plan_.images, manifest_.picture_height, manifest_.picture_width, 3});
    if (size != wanted)
        refuse("The pictures are " + std::to_string(wanted) + " bytes, [b, height, width, 3], and there is room for " +
               std::to_string(size) + ".");
    if (!begun_) refuse("The run has no latents yet; give its input first.");
    decode(*bundle_, latents_, plan_.images, pixels);
}

double Run::clock(int64_t i) const {
    return plan_.preset->by_sigma ? plan_.solver->sigmas()[static_cast<size_t>(i)] : static_cast<double>(i);
}

double Run::target(int64_t i) const {
    double now = clock(i);
    if (plan_.preset->theta == 0 || plan_.steps() < 2 || !plan_.solver->first_order()) return now;
    return now + plan_.preset->theta * (i + 1 < plan_.steps() ? clock(i + 1) - now : now - clock(i - 1));
}

bool Run::next(accelaes_step* step) {
    if (!begun_) refuse("The run has no input yet; call accelaes_run_input first.");
    if (at_ >= plan_.steps())
        refuse("The run has carried out all of its " + std::to_string(plan_.steps()) + " steps; give it new input.");
    if (cancelled_) throw Failure(ACCELAES_FAILED, "The run was cancelled before step " + std::to_string(at_) + ".");
    double begun = seconds();
    engine_seconds_ = 0;
    int64_t i = at_;
    char symbol = plan_.symbols[static_cast<size_t>(i)];
    now_ = static_cast<float>(clock(i)), target_ = static_cast<float>(target(i)), step_ = static_cast<float>(i);
    auto latent = static_cast<size_t>(plan_.latent(manifest_));
    for (int64_t row = 0; row < plan_.rows; ++row) {
        auto image = static_cast<size_t>(row % plan_.images);
        std::memcpy(twice_.data() + static_cast<size_t>(row) * latent, latents_.data() + image * latent,
                    sizeof(float) * latent);
    }
    std::fill(timestep_.begin(), timestep_.end(), plan_.solver->timesteps()[static_cast<size_t>(i)]);
    bool had_mask = masked_;
    if (programs_.has("decide")) {
        programs_.run("decide");
        if (wanted_ == 0 && i + 1 < plan_.steps()) symbol = '.';
    }
    if (symbol == 'D') {
        dense(i);
    } else if (symbol != '.') {
        sparse(sets_.at(symbol));
    }
    programs_.run("extrapolate");
    if (symbol != '.' && programs_.has("observe")) programs_.run("observe");
    bool by_region = had_mask && plan_.guided && !plan_.two_calls && programs_.has("guide_by_region");
    programs_.run(by_region ? "guide_by_region" : "guide");
    guide_and_move(i);
    ++at_;
    if (step != nullptr) {
        step->index = static_cast<int>(i);
        step->symbol = symbol;
        step->tokens = static_cast<int>(plan_.focus_of(symbol, manifest_));
        step->seconds = seconds() - begun;
        step->engine_seconds = engine_seconds_;
    }
    return at_ < plan_.steps();
}

void Run::guide_and_move(int64_t i) {
    unpatchify(manifest_, guided_.data(), plan_.images, predicted_.data());
    plan_.solver->move(i, predicted_.data(), latents_);
}

void Run::dense(int64_t i) {
    bool observed = plan_.preset->focus && plan_.preset->focus->mask_step == i;
    cache_.put_by();
    engine_call({everything_.data(), everything_.data(), manifest_.tokens, computed_.data(), observed, true, true});
    stale_ = true;
    if (observed) build_mask();
    std::fill(cached_.begin(), cached_.end(), 1.0f);
    programs_.run("advance");
}

void Run::build_mask() {
    int64_t N = manifest_.tokens;
    auto first = static_cast<size_t>(plan_.first_conditional * N);
    std::memcpy(affinity_.data(), affinity_rows_.data() + first, sizeof(float) * affinity_.size());
    auto n = static_cast<int64_t>(std::floor(static_cast<double>(N) * plan_.preset->focus->fraction + 0.5));
    n = std::min(std::max(n, int64_t{1}), N);
    std::vector<int64_t> chosen(static_cast<size_t>(N));
    std::fill(mask_.begin(), mask_.end(), 0.0f);
    for (int64_t image = 0; image < plan_.images; ++image) {
        choose(affinity_.data() + image * N, N, n, order_, chosen.data(), chosen.data() + n);
        for (int64_t k = 0; k < n; ++k) mask_[static_cast<size_t>(image * N + chosen[static_cast<size_t>(k)])] = 1.0f;
    }
    for (auto& [symbol, sets] : sets_) sets.chosen = false;
    masked_ = true;
}

void Run::choose_tokens(Sets& sets) {
    programs_.run("score");
    int64_t N = manifest_.tokens, n = sets.n, m = N - n;
    for (int64_t image = 0; image < plan_.images; ++image) {
        choose(score_.data() + image * N, N, n, order_, sets.focus.data() + image * n,
               sets.background.data() + image * m);
    }
    for (int64_t row = plan_.images; row < plan_.rows; ++row) {
        int64_t image = row % plan_.images;
        std::copy_n(sets.focus.data() + image * n, n, sets.focus.data() + row * n);
        std::copy_n(sets.background.data() + image * m, m, sets.background.data() + row * m);
    }
    sets.chosen = true;
    stale_ = true;
}

void Run::sparse(Sets& sets) {
    int64_t N = manifest_.tokens, w = manifest_.token_width(), n = sets.n, m = N - n;
    bool moving = plan_.preset->focus->moving;
    if (moving || !sets.chosen) choose_tokens(sets);
    bool carried = programs_.has("carry");
    if (carried) programs_.run("carry");
    if (stale_ || carried || read_ != &sets)
        cache_.read(sets.background.data(), m, carried ? distance_.data() : nullptr);
    stale_ = false, read_ = &sets;
    engine_call({sets.focus.data(), sets.background.data(), n, focus_rows_.data(), false, moving, false});
    if (moving) {
        cache_.write(sets.focus.data(), n);
        stale_ = true;
    }
    scatter(computed_.data(), plan_.rows, N, w, sets.focus.data(), n, focus_rows_.data());
    for (const auto& spec : manifest_.outputs) {
        if (spec.name == "background_prediction")
            scatter(computed_.data(), plan_.rows, N, w, sets.background.data(), m, background_rows_.data());
    }
    std::fill(running_.begin(), running_.end(), 0.0f);
    for (int64_t row = 0; row < plan_.rows; ++row) {
        for (int64_t k = 0; k < n; ++k)
            running_[static_cast<size_t>(row * N + sets.focus[static_cast<size_t>(row * n + k)])] = 1.0f;
    }
    if (moving) {
        cached_ = running_;
    } else {
        std::fill(cached_.begin(), cached_.end(), 0.0f);
    }
    programs_.run("advance_focus");
    shown_n_ = n;
    shown_focus_.assign(sets.focus.begin(), sets.focus.begin() + plan_.images * n);
}

}  // namespace accelaes
