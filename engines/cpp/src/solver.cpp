#include "solver.hpp"

#include <algorithm>
#include <cmath>

#include "failure.hpp"
#include "schedule.hpp"

namespace accelaes {
namespace {

// The share of a sample that is left at every training timestep, as its variance.
std::vector<float> shares_left(const Diffusion& diffusion, int64_t train) {
    std::vector<float> made;
    bool scaled = diffusion.betas == Diffusion::Betas::scaled_linear;
    auto first = static_cast<float>(scaled ? std::sqrt(diffusion.beta_start) : diffusion.beta_start);
    auto last = static_cast<float>(scaled ? std::sqrt(diffusion.beta_end) : diffusion.beta_end);
    float step = (last - first) / static_cast<float>(train - 1);
    auto cosine = [](double time) { return std::pow(std::cos((time + 0.008) / 1.008 * M_PI / 2), 2); };
    double left = 1;
    for (int64_t k = 0; k < train; ++k) {
        float beta;
        if (diffusion.betas == Diffusion::Betas::cosine) {
            auto at = static_cast<double>(k), all = static_cast<double>(train);
            beta = static_cast<float>(std::min(1 - cosine((at + 1) / all) / cosine(at / all), 0.999));
        } else {  // from whichever end is nearer, as torch does
            beta =
                k < train / 2 ? first + step * static_cast<float>(k) : last - step * static_cast<float>(train - k - 1);
            if (scaled) beta *= beta;
        }
        left *= static_cast<double>(1.0f - beta);
        made.push_back(static_cast<float>(left));
    }
    return made;
}

// Training timesteps of `steps` steps, the largest first; numpy rounds halves to even, as nearbyint does.
std::vector<int64_t> timesteps_of(const Diffusion& diffusion, int64_t train, int64_t steps) {
    std::vector<int64_t> made;
    int64_t places = diffusion.ddim ? steps : steps + 1;  // DPM-Solver++ leaves the last of one more out
    for (int64_t k = 0; k < steps; ++k) {
        auto from_end = static_cast<double>(places - 1 - k);
        double place;
        if (diffusion.spacing == Diffusion::Spacing::linspace) {
            double step = places > 1 ? static_cast<double>(train - 1) / static_cast<double>(places - 1) : 0;
            place = k == 0 && places > 1 ? static_cast<double>(train - 1) : std::nearbyint(from_end * step);
        } else if (diffusion.spacing == Diffusion::Spacing::leading) {
            place = from_end * static_cast<double>(train / places) + static_cast<double>(diffusion.offset);
        } else {
            double ratio = static_cast<double>(train) / static_cast<double>(steps);
            place = std::nearbyint(static_cast<double>(train) - static_cast<double>(k) * ratio) - 1;
        }
        made.push_back(static_cast<int64_t>(place));
        if (made.back() < 0 || made.back() >= train || steps > train)
            refuse("The bundle's scheduler has " + std::to_string(train) + " timesteps, too few for " +
                   std::to_string(steps) + " steps; ask for fewer.");
    }
    return made;
}

}  // namespace

Solver::Solver(std::vector<float> sigmas, std::vector<float> timesteps)
    : sigmas_(std::move(sigmas)), timesteps_(std::move(timesteps)) {}

Solver::Solver(const Manifest& manifest, int64_t steps) {
    require_scheduler(manifest);
    const auto& scheduler = *manifest.scheduler;
    diffusion_ = scheduler.diffusion;
    if (!diffusion_) {
        make_schedule(manifest, steps, sigmas_, timesteps_);
        return;
    }
    set_diffusion(scheduler.train, steps);
}

void Solver::set_diffusion(double training, int64_t steps) {
    auto train = static_cast<int64_t>(training);
    auto left = shares_left(*diffusion_, train);
    for (int64_t timestep : timesteps_of(*diffusion_, train, steps)) {
        timesteps_.push_back(static_cast<float>(timestep));
        float own = left[static_cast<size_t>(timestep)];
        if (!diffusion_->ddim) {
            sigmas_.push_back(std::sqrt((1.0f - own) / own));
            continue;
        }
        int64_t next = timestep - train / steps;
        alphas_before_.push_back(own);
        alphas_after_.push_back(next >= 0                  ? left[static_cast<size_t>(next)]
                                : diffusion_->alpha_to_one ? 1.0f
                                                           : left[0]);
    }
    if (!diffusion_->ddim) sigmas_.push_back(diffusion_->ends_at_zero ? 0.0f : std::sqrt((1.0f - left[0]) / left[0]));
}

void Solver::begin(const Device& device, size_t numbers) {
    known_ = 0;
    if (!remembers() || sample_.size() == numbers) return;
    sample_ = Buffer<float>(device, numbers);
    earlier_ = Buffer<float>(device, numbers);
}

void Solver::move(const Device& device, int64_t step, const float* prediction, float* latents, size_t numbers) {
    auto i = static_cast<size_t>(step);
    Move by = !diffusion_ ? euler(i) : diffusion_->ddim ? ddim(i) : dpm(i);
    if (remembers()) sample_.swap(earlier_);
    device(&DeviceFunctions::move, by, prediction, latents, sample_.data(), earlier_.data(), numbers);
    ++known_;
}

Move Solver::euler(size_t step) const {
    Move by = {};
    by.kind = Move::Kind::euler;
    by.step = sigmas_[step + 1] - sigmas_[step];
    return by;
}

// Song et al. 2020, Eq. 12, with eta = 0.
Move Solver::ddim(size_t step) const {
    Move by = {};
    by.kind = Move::Kind::ddim;
    by.prediction = diffusion_->prediction;
    float alpha = alphas_before_[step], after = alphas_after_[step];
    by.signal = std::sqrt(alpha), by.noise = std::sqrt(1.0f - alpha);
    by.signal_after = std::sqrt(after), by.noise_after = std::sqrt(1.0f - after);
    by.most = static_cast<float>(diffusion_->clipped_to);
    return by;
}

// Lu et al. 2022 (DPM-Solver++), Eq. 9 and algorithm 2, as multistep methods of order 1 and 2.
Move Solver::dpm(size_t step) const {
    struct Place {
        float alpha, sigma, lambda;
    };
    auto place = [&](size_t at) {
        float alpha = 1.0f / std::sqrt(sigmas_[at] * sigmas_[at] + 1.0f), sigma = sigmas_[at] * alpha;
        return Place{alpha, sigma, std::log(alpha) - std::log(sigma)};
    };
    Place now = place(step), next = place(step + 1);
    Move by = {};
    by.kind = Move::Kind::dpm;
    by.prediction = diffusion_->prediction;
    by.signal = now.alpha, by.noise = now.sigma;
    bool last = step + 1 == timesteps_.size();
    bool few = diffusion_->lower_at_end && timesteps_.size() < 15;
    by.first =
        diffusion_->order == 1 || known_ < 1 || (last && (diffusion_->euler_at_end || few || diffusion_->ends_at_zero));
    float h = next.lambda - now.lambda;
    by.noise_after = next.sigma / now.sigma;
    by.signal_after = next.alpha * (std::exp(-h) - 1.0f);
    if (by.first) return by;
    by.ratio = (now.lambda - place(step - 1).lambda) / h;
    by.slope = diffusion_->heun ? next.alpha * ((std::exp(-h) - 1.0f) / h + 1.0f) : -0.5f * by.signal_after;
    return by;
}

}  // namespace accelaes
