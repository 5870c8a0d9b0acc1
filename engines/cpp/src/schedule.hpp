// The sigmas and timesteps of a run whose caller gives none, by the bundle's own scheduler.
#pragma once

#include <cstdint>
#include <vector>

#include "manifest.hpp"

namespace accelaes {

// Refuses a bundle without a scheduler, or with one this runtime doesn't know.
void require_scheduler(const Manifest& manifest);

// T + 1 sigmas and T timesteps of diffusers' FlowMatchEulerDiscreteScheduler, as SD3's and FLUX's pipelines set it.
// Refused for any other scheduler or pipeline.
void make_schedule(const Manifest& manifest, int64_t steps, std::vector<float>& sigmas, std::vector<float>& timesteps);

}  // namespace accelaes
