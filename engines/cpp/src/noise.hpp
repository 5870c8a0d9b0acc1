// The noise that a seed stands for, to the bit as torch's CPU generator draws it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "manifest.hpp"

namespace accelaes {

// torch.randn(count, generator=torch.Generator("cpu").manual_seed(seed)), from 16 numbers on.
//
// A Mersenne twister makes uniform numbers of 24 bits, and Box and Muller's method pairs of normal ones of them, eight
// apart. Logarithm, sine and cosine are Cephes' in single precision, rounded where torch's code for AVX2 rounds.
void draw_normal(uint64_t seed, float* numbers, size_t count);

// The first latents [b, ...] of pipelines: drawn as [b, C, (F,) Hl, Wl], and packed into tokens where the engine takes
// tokens.
void draw_latents(const Manifest& manifest, uint64_t seed, int64_t images, float* latents);

}  // namespace accelaes
