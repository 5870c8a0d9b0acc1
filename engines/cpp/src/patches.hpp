// From tokens to latents: a token's numbers are in the order frame, row, column within the patch, then channel.
#pragma once

#include <cstdint>

#include "manifest.hpp"

namespace accelaes {

// Predictions [images, N, w] as latents [images, C, (F,) Hl, Wl]; packed tokens as they are.
void unpatchify(const Manifest& manifest, const float* tokens, int64_t images, float* latents);

}  // namespace accelaes
