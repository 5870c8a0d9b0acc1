#include "schedule.hpp"

#include "failure.hpp"

namespace accelaes {

void make_schedule(const Manifest& manifest, int64_t steps, std::vector<float>& sigmas, std::vector<float>& timesteps) {
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
    // The ends are shifted, and what lies between them evenly is shifted again, as diffusers does; the ends in fp32.
    auto shift = static_cast<float>(scheduler->shift), train = static_cast<float>(scheduler->train);
    auto end = [&](float sigma) { return shift * sigma / (1.0f + static_cast<float>(scheduler->shift - 1) * sigma); };
    double first = static_cast<double>(end(1.0f)) * scheduler->train;
    double last = static_cast<double>(end(1.0f / train)) * scheduler->train;
    sigmas.clear();
    timesteps.clear();
    double step = steps > 1 ? (last - first) / static_cast<double>(steps - 1) : 0;
    for (int64_t i = 0; i < steps; ++i) {
        double t = i > 0 && i == steps - 1 ? last : static_cast<double>(i) * step + first;
        double sigma = t / scheduler->train;
        sigma = scheduler->shift * sigma / (1 + (scheduler->shift - 1) * sigma);
        sigmas.push_back(static_cast<float>(sigma));
        timesteps.push_back(sigmas.back() * train);
    }
    sigmas.push_back(0.0f);
}

}  // namespace accelaes
