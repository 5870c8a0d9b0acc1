// How a run's latents move from step to step.
#pragma once

#include <cstdint>
#include <vector>

#include "device.hpp"
#include "manifest.hpp"

namespace accelaes {

// By Euler's method along sigmas, or by DDIM or DPM-Solver++ as diffusers has them, without noise between steps.
class Solver {
   public:
    // The bundle's scheduler; refused for one that this runtime doesn't know.
    Solver(const Manifest& manifest, int64_t steps);
    // The caller's sigmas [T + 1] and timesteps [T].
    Solver(std::vector<float> sigmas, std::vector<float> timesteps);

    const std::vector<float>& sigmas() const { return sigmas_; }  // [T + 1]; none of DDIM
    const std::vector<float>& timesteps() const { return timesteps_; }
    // Whether predictions may be extrapolated past a step: solvers of a higher order do so themselves.
    bool first_order() const { return !diffusion_ || diffusion_->order == 1; }
    bool by_euler() const { return !diffusion_; }

    // Forget what earlier steps predicted.
    void begin(const Device& device, size_t numbers);
    void move(const Device& device, int64_t step, const float* prediction, float* latents, size_t numbers);
    // What a run of so many numbers keeps of earlier steps, in bytes.
    size_t bytes(size_t numbers) const { return remembers() ? 2 * numbers * sizeof(float) : 0; }

   private:
    bool remembers() const { return diffusion_ && !diffusion_->ddim; }
    void set_diffusion(double train, int64_t steps);
    Move euler(size_t step) const;
    Move ddim(size_t step) const;
    Move dpm(size_t step) const;

    std::vector<float> sigmas_, timesteps_;
    std::optional<Diffusion> diffusion_;
    std::vector<float> alphas_before_, alphas_after_;  // DDIM's shares of the sample at each step's two ends
    Buffer<float> sample_, earlier_;                   // as the last two steps predicted it
    int64_t known_ = 0;                                // steps that have
};

}  // namespace accelaes
