#include "run.hpp"

#include <algorithm>
#include <cmath>

#include "failure.hpp"
#include "room.hpp"

namespace accelaes {

Run::Run(std::shared_ptr<const Bundle> bundle, RunPlan plan)
    : bundle_(std::move(bundle)),
      manifest_(bundle_->manifest),
      device_(bundle_->device),
      plan_(std::move(plan)),
      programs_(*bundle_, *plan_.preset, plan_.rows, plan_.images, plan_.first_conditional, plan_.gated),
      cache_(device_, manifest_, plan_.rows, plan_.most_focus(manifest_), plan_.most_background(manifest_),
             plan_.preset->has("carry")) {
    int64_t N = manifest_.tokens, w = manifest_.token_width(), latent = plan_.latent(manifest_);
    int64_t n = plan_.most_focus(manifest_), m = plan_.most_background(manifest_);
    auto buffer = [&](std::initializer_list<int64_t> sizes) { return Buffer<float>(device_, room(sizes)); };
    latents_ = buffer({plan_.images, latent});
    plan_.solver->begin(device_, latents_.size());  // takes its memory
    twice_ = buffer({plan_.rows, latent});
    timestep_ = buffer({plan_.rows});
    computed_ = buffer({plan_.rows, N, w});
    predicted_ = buffer({plan_.rows, N, w});
    guided_ = buffer({plan_.images, N, w});
    focus_rows_ = buffer({plan_.rows, n, w});
    background_rows_ = buffer({plan_.rows, m, w});
    scalars_ = buffer({static_cast<int64_t>(Scalar::count)});
    for (auto* of_tokens : {&running_, &cached_, &distance_, &affinity_rows_}) *of_tokens = buffer({plan_.rows, N});
    for (auto* of_images : {&affinity_, &mask_, &score_}) *of_images = buffer({plan_.images, N});
    std::vector<int64_t> all(running_.size());
    for (size_t k = 0; k < all.size(); ++k) all[k] = static_cast<int64_t>(k) % N;
    everything_ = Buffer<int64_t>(device_, all.size());
    device_(&DeviceFunctions::write, everything_.data(), all.data(), everything_.bytes());
    chosen_ = Buffer<int64_t>(device_, room({plan_.images, N}));
    conditional_ = buffer({plan_.rows});
    device_(&DeviceFunctions::fill, conditional_.data() + plan_.first_conditional, room({plan_.images}), 1.0f);
    auto in_its_type = [&](const Spec& spec, int64_t numbers) {
        size_t bytes = spec.type == Type::f32 ? 0 : width_of(spec.type) * room({plan_.rows, numbers});
        return Raw{spec.type, Buffer<char>(device_, bytes)};
    };
    for (const auto& spec : manifest_.inputs) {
        if (spec.name != "hidden_states") continue;
        hidden_type_ = spec.type;
        hidden_ = in_its_type(spec, latent).data;
    }
    for (const auto& spec : manifest_.outputs) {
        if (spec.name == "focus_prediction") raw_focus_ = in_its_type(spec, static_cast<int64_t>(room({N, w})));
        if (spec.name == "background_prediction")
            raw_background_ = in_its_type(spec, static_cast<int64_t>(room({m, w})));
    }
    for (char symbol : plan_.symbols) {
        if (symbol < 'a' || sets_.count(symbol) > 0) continue;
        int64_t own = plan_.focus_of(symbol, manifest_);
        sets_[symbol] = {own, Buffer<int64_t>(device_, room({plan_.rows, own})),
                         Buffer<int64_t>(device_, room({plan_.rows, N - own})), false};
    }
    shown_focus_.reserve(room({plan_.images, n}));
    if (!device_.is_host()) shown_latents_.resize(latents_.size());
    set(Scalar::scale, static_cast<double>(plan_.scale));
    auto placed = [&](const char* name, Buffer<float>& own, size_t skip = 0) {
        programs_.place(name, own.data() + skip, own.size() - skip);
    };
    auto number = [&](const char* name, Scalar scalar) { programs_.place(name, scalar_at(scalar), 1); };
    size_t second = plan_.guided ? room({plan_.images, N, w}) : 0;
    bool uncond_first = manifest_.layout == Layout::uncond_cond;
    placed("computed", computed_), placed("running", running_), placed("cached", cached_);
    placed("predicted", predicted_), placed("prediction", predicted_), placed("guided", guided_);
    placed("uncond", predicted_, uncond_first ? 0 : second), placed("cond", predicted_, uncond_first ? second : 0);
    placed("score", score_), placed("affinity", affinity_), placed("mask", mask_), placed("distance", distance_);
    placed("latents", twice_);
    placed("conditional", conditional_);
    number("now", Scalar::now), number("target", Scalar::target), number("step", Scalar::step);
    number("scale", Scalar::scale), number("wanted", Scalar::wanted);
    programs_.bind();
}

void Run::set(Scalar scalar, double number) {
    device_(&DeviceFunctions::fill, scalar_at(scalar), size_t{1}, static_cast<float>(number));
}

const float* Run::latents() const {
    if (device_.is_host()) return latents_.data();
    device_.read(shown_latents_.data(), latents_.data(), latents_.bytes());
    return shown_latents_.data();
}

const int64_t* Run::focus() const {
    if (shown_ == nullptr) return nullptr;
    if (device_.is_host()) return shown_->focus.data();
    shown_focus_.resize(room({plan_.images, shown_n_}));
    device_.read(shown_focus_.data(), shown_->focus.data(), sizeof(int64_t) * shown_focus_.size());
    return shown_focus_.data();
}

void Run::picture(uint8_t* pixels, size_t size) const {
    if (!manifest_.vae)
        refuse(
            "The bundle has no VAE to make pictures with; take the latents, or build it again with --components vae.");
    size_t wanted =
        room({plan_.images, manifest_.picture_frames, manifest_.picture_height, manifest_.picture_width, 3});
    if (size != wanted)
        refuse("The pictures are " + std::to_string(wanted) + " bytes, " +
               (manifest_.picture_frames > 1 ? "[b, frames, height, width, 3]" : "[b, height, width, 3]") +
               ", and there is room for " + std::to_string(size) + ".");
    if (!begun_) refuse("The run has no latents yet; give its input first.");
    const float* made = latents();
    decode(*bundle_, {made, made + latents_.size()}, plan_.images, pixels);
}

double Run::clock(int64_t i) const {
    return plan_.preset->by_sigma ? plan_.solver->sigmas()[static_cast<size_t>(i)] : static_cast<double>(i);
}

double Run::extrapolated_to(int64_t i) const {
    double own = clock(i);
    if (plan_.preset->theta == 0 || plan_.steps() < 2 || !plan_.solver->first_order()) return own;
    return own + plan_.preset->theta * (i + 1 < plan_.steps() ? clock(i + 1) - own : own - clock(i - 1));
}

bool Run::next(accelaes_step* found) {
    if (!begun_) refuse("The run has no input yet; call accelaes_run_input first.");
    if (at_ >= plan_.steps())
        refuse("The run has carried out all of its " + std::to_string(plan_.steps()) + " steps; give it new input.");
    if (cancelled_) throw Failure(ACCELAES_FAILED, "The run was cancelled before step " + std::to_string(at_) + ".");
    double begun = seconds();
    engine_seconds_ = 0;
    int64_t i = at_;
    char symbol = plan_.symbols[static_cast<size_t>(i)];
    set(Scalar::now, clock(i)), set(Scalar::target, extrapolated_to(i)), set(Scalar::step, static_cast<double>(i));
    double_latents();
    auto timestep = plan_.solver->timesteps()[static_cast<size_t>(i)];
    device_(&DeviceFunctions::fill, timestep_.data(), timestep_.size(), timestep);
    bool had_mask = masked_;
    if (programs_.has("decide")) {
        programs_.run("decide");
        float computes = 0;
        device_.read(&computes, scalar_at(Scalar::wanted), sizeof computes);
        if (computes == 0 && i + 1 < plan_.steps()) symbol = '.';
    }
    if (symbol == 'D') {
        dense(i);
    } else if (left_out_by(symbol) >= 0) {
        partial(left_out_by(symbol));
    } else if (symbol != '.') {
        sparse(i, sets_.at(symbol));
    }
    programs_.run("extrapolate");
    if (symbol != '.' && programs_.has("observe")) programs_.run("observe");
    bool by_region = had_mask && plan_.guided && !plan_.two_calls && programs_.has("guide_by_region");
    programs_.run(by_region ? "guide_by_region" : "guide");
    guide_and_move(i);
    ++at_;
    found->index = static_cast<int>(i);
    found->symbol = symbol;
    found->tokens = static_cast<int>(plan_.focus_of(symbol, manifest_));
    found->seconds = seconds() - begun;
    found->engine_seconds = engine_seconds_;
    return at_ < plan_.steps();
}

// Both halves of guidance start from the same latents.
void Run::double_latents() {
    size_t half = latents_.size();
    for (size_t row = 0; row < twice_.size(); row += half)
        device_(&DeviceFunctions::copy, twice_.data() + row, latents_.data(), latents_.bytes());
    if (!hidden_.empty())
        device_(&DeviceFunctions::convert, hidden_.data(), hidden_type_, twice_.data(), Type::f32, twice_.size());
}

void Run::guide_and_move(int64_t i) {
    const float* prediction = guided_.data();
    if (!manifest_.packed) {
        Patches patches = {plan_.images,     manifest_.tokens, manifest_.out_channels, manifest_.frames,
                           manifest_.height, manifest_.width,  manifest_.patch,        manifest_.patch_frames};
        device_(&DeviceFunctions::unpatchify, patches, prediction, predicted_.data());
        prediction = predicted_.data();
    }
    plan_.solver->move(device_, i, prediction, latents_.data(), latents_.size());
}

// Whether a sparse step to come reads the cache as step `i` leaves it, past so many dense ones, which write it anew.
bool Run::is_read(int64_t i, int dense_between) const {
    for (auto j = static_cast<size_t>(i) + 1; j < plan_.symbols.size(); ++j) {
        char symbol = plan_.symbols[j];
        if (symbol >= 'a') return true;
        // A gate may skip what the plan calls dense.
        if (symbol == 'D' && !programs_.has("decide") && --dense_between < 0) return false;
    }
    return false;
}

void Run::dense(int64_t i) {
    bool observed = plan_.preset->focus && plan_.preset->focus->mask_step == i;
    bool kept = is_read(i, programs_.has("carry") ? 1 : 0);
    if (kept) cache_.put_by();
    engine_call({everything_.data(), everything_.data(), manifest_.tokens, computed_.data(), observed, kept, true});
    stale_ = true;
    if (observed) build_mask();
    device_(&DeviceFunctions::fill, cached_.data(), cached_.size(), 1.0f);
    programs_.run("advance");
}

// All tokens, without a range of blocks.
void Run::partial(int left_out) {
    Call call = {everything_.data(), everything_.data(), manifest_.tokens, computed_.data(), false, false, true};
    call.left_out = left_out;
    engine_call(call);
    device_(&DeviceFunctions::fill, cached_.data(), cached_.size(), 0.0f);
    programs_.run("advance");
}

void Run::build_mask() {
    int64_t N = manifest_.tokens;
    device_(&DeviceFunctions::copy, affinity_.data(), affinity_rows_.data() + plan_.first_conditional * N,
            affinity_.bytes());
    auto n = static_cast<int64_t>(std::floor(static_cast<double>(N) * plan_.preset->focus->fraction + 0.5));
    n = std::min(std::max(n, int64_t{1}), N);
    int64_t* others = chosen_.data() + plan_.images * n;
    device_(&DeviceFunctions::choose, affinity_.data(), plan_.images, N, n, int64_t{1}, chosen_.data(), others);
    device_(&DeviceFunctions::mark, mask_.data(), Places{plan_.images, N, n, chosen_.data()});
    for (auto& [symbol, sets] : sets_) sets.chosen = false;
    masked_ = true;
}

void Run::choose_tokens(Sets& sets) {
    programs_.run("score");
    device_(&DeviceFunctions::choose, score_.data(), plan_.images, manifest_.tokens, sets.n, plan_.rows / plan_.images,
            sets.focus.data(), sets.background.data());
    sets.chosen = true;
    stale_ = true;
}

void Run::sparse(int64_t i, Sets& sets) {
    int64_t N = manifest_.tokens, n = sets.n, m = N - n;
    size_t bytes = sizeof(float) * static_cast<size_t>(manifest_.token_width());
    bool moving = plan_.preset->focus->moving;
    if (moving || !sets.chosen) choose_tokens(sets);
    bool carried = programs_.has("carry");
    if (carried) programs_.run("carry");
    if (stale_ || carried || read_ != &sets)
        cache_.read(sets.background.data(), m, carried ? distance_.data() : nullptr);
    stale_ = false, read_ = &sets;
    bool kept = moving && is_read(i, carried ? 1 : 0);
    engine_call({sets.focus.data(), sets.background.data(), n, focus_rows_.data(), false, kept, false});
    if (kept) {
        cache_.write(sets.focus.data(), n, is_read(i, 0));
        stale_ = true;
    }
    Places focus = {plan_.rows, N, n, sets.focus.data()}, background = {plan_.rows, N, m, sets.background.data()};
    Moved rows = {focus_rows_.data(), computed_.data(), nullptr, 1, bytes};
    device_(&DeviceFunctions::scatter, &rows, size_t{1}, focus);
    for (const auto& spec : manifest_.outputs) {
        if (spec.name != "background_prediction") continue;
        rows.from = background_rows_.data();
        device_(&DeviceFunctions::scatter, &rows, size_t{1}, background);
    }
    device_(&DeviceFunctions::mark, running_.data(), focus);
    if (moving) {
        device_(&DeviceFunctions::copy, cached_.data(), running_.data(), running_.bytes());
    } else {
        device_(&DeviceFunctions::fill, cached_.data(), cached_.size(), 0.0f);
    }
    programs_.run("advance_focus");
    shown_n_ = n;
    shown_ = &sets;
}

}  // namespace accelaes
