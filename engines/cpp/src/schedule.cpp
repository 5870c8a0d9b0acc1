#include "schedule.hpp"

#include <cmath>
#include <limits>

#include "failure.hpp"

namespace accelaes {
namespace {

using Kind = Scheduler::Kind;

// From `first` to `last` evenly, as numpy does it.
template <typename Number>
std::vector<Number> evenly(double first, double last, int64_t count) {
    std::vector<Number> made;
    double step = count > 1 ? (last - first) / static_cast<double>(count - 1) : 0;
    for (int64_t k = 0; k < count; ++k) {
        bool end = k > 0 && k == count - 1;
        made.push_back(static_cast<Number>(end ? last : static_cast<double>(k) * step + first));
    }
    return made;
}

// How far a picture of so many tokens is shifted where the scheduler goes by that.
double dynamic_shift(const Scheduler& scheduler, int64_t tokens) {
    double slope = (scheduler.max_shift - scheduler.base_shift) / (scheduler.max_tokens - scheduler.base_tokens);
    return static_cast<double>(tokens) * slope + (scheduler.base_shift - slope * scheduler.base_tokens);
}

// Shifted and stretched, in the precision that the pipeline's own sigmas have.
template <typename Number>
void shift(const Scheduler& scheduler, int64_t tokens, std::vector<Number>& sigmas) {
    auto fixed = static_cast<Number>(scheduler.shift), less = static_cast<Number>(scheduler.shift - 1);
    double mu = scheduler.dynamic ? dynamic_shift(scheduler, tokens) : 0;
    auto by = static_cast<Number>(scheduler.linear ? mu : std::exp(mu));
    for (auto& sigma : sigmas)
        sigma = scheduler.dynamic ? by / (by + (1 / sigma - 1)) : fixed * sigma / (1 + less * sigma);
    if (scheduler.terminal == 0) return;
    Number scale = (1 - sigmas.back()) / static_cast<Number>(1 - scheduler.terminal);
    for (auto& sigma : sigmas) sigma = 1 - (1 - sigma) / scale;
}

// The share of the beta distribution of these parameters below x (Numerical Recipes, 6.4: a continued fraction).
double beta_below(double x, double a, double b) {
    if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
    if (x > (a + 1) / (a + b + 2)) return 1 - beta_below(1 - x, b, a);
    constexpr double tiny = std::numeric_limits<double>::min();
    auto away = [](double number) { return std::fabs(number) < tiny ? tiny : number; };
    double d = 1 / away(1 - (a + b) * x / (a + 1)), c = 1, fraction = d;
    for (int m = 1; m <= 300; ++m) {
        double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        double before = fraction;
        for (double term : {even, odd}) {
            d = 1 / away(1 + term * d);
            c = away(1 + term / c);
            fraction *= d * c;
        }
        if (std::fabs(fraction - before) <= 1e-16 * std::fabs(fraction)) break;
    }
    double front = std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x);
    return std::exp(front) * fraction / a;
}

// Below which x that share lies, by halving.
double beta_place(double share, double a, double b) {
    double low = 0, high = 1;
    for (int round = 0; round < 200; ++round) {
        double middle = low + (high - low) / 2;
        if (middle == low || middle == high) break;
        (beta_below(middle, a, b) < share ? low : high) = middle;
    }
    return share <= 0 ? 0 : share >= 1 ? 1 : high;
}

// In place of what lies between the first and the last.
std::vector<double> spaced(Kind kind, double most, double least, int64_t steps) {
    constexpr double rho = 7, of_beta = 0.6;  // diffusers' own
    std::vector<double> made;
    if (kind == Kind::exponential) {
        for (double place : evenly<double>(std::log(most), std::log(least), steps)) made.push_back(std::exp(place));
        return made;
    }
    for (double place : evenly<double>(0, 1, steps)) {
        if (kind == Kind::karras) {
            double first = std::pow(most, 1 / rho), last = std::pow(least, 1 / rho);
            made.push_back(std::pow(first + place * (last - first), rho));
        } else {
            made.push_back(least + beta_place(1 - place, of_beta, of_beta) * (most - least));
        }
    }
    return made;
}

template <typename Number>
std::vector<float> scheduled(const Scheduler& scheduler, int64_t tokens, std::vector<Number> sigmas) {
    shift(scheduler, tokens, sigmas);
    if (scheduler.kind == Kind::even) return {sigmas.begin(), sigmas.end()};
    auto made = spaced(scheduler.kind, sigmas.front(), sigmas.back(), static_cast<int64_t>(sigmas.size()));
    return {made.begin(), made.end()};
}

}  // namespace

void require_scheduler(const Manifest& manifest) {
    const auto& scheduler = manifest.scheduler;
    if (!scheduler) {
        refuse(
            "The run has no sigmas or no timesteps, and the bundle has no scheduler; give T + 1 and T of them, "
            "or build it again with --components.");
    }
    if (!scheduler->unknown.empty()) {
        refuse("The run has no sigmas or no timesteps, and this runtime doesn't know the bundle's scheduler (" +
               scheduler->unknown + "); give T + 1 and T of them, as the scheduler has them.");
    }
}

void make_schedule(const Manifest& manifest, int64_t steps, std::vector<float>& sigmas, std::vector<float>& timesteps) {
    require_scheduler(manifest);
    const auto& scheduler = manifest.scheduler;
    auto train = static_cast<float>(scheduler->train);
    if (scheduler->from_one) {
        sigmas = scheduled(*scheduler, manifest.tokens, evenly<float>(1, 1 / static_cast<double>(steps), steps));
    } else {
        // Where a fixed shift is, the ends are shifted, in fp32, and what lies between them evenly is shifted again.
        auto fixed = static_cast<float>(scheduler->shift), less = static_cast<float>(scheduler->shift - 1);
        auto end = [&](float sigma) {
            float shifted = scheduler->dynamic ? sigma : fixed * sigma / (1.0f + less * sigma);
            return static_cast<double>(shifted) * scheduler->train;
        };
        auto places = evenly<double>(end(1.0f), end(1.0f / train), steps);
        for (double& place : places) place /= scheduler->train;
        sigmas = scheduled(*scheduler, manifest.tokens, std::move(places));
    }
    timesteps.clear();
    for (float& sigma : sigmas) {
        if (scheduler->inverted) sigma = 1.0f - sigma;
        timesteps.push_back(sigma * train);
        if (scheduler->called_by_sigma) timesteps.back() /= 1000.0f;  // whatever the scheduler's own number is
    }
    sigmas.push_back(scheduler->inverted ? 1.0f : 0.0f);
    for (float sigma : sigmas) {
        if (!std::isfinite(sigma))
            refuse("The bundle's scheduler makes sigmas of " + std::to_string(steps) + " steps that are no numbers.");
    }
}

}  // namespace accelaes
