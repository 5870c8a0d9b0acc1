#include "patches.hpp"

#include <algorithm>

namespace accelaes {

void unpatchify(const Manifest& of, const float* tokens, int64_t images, float* latents) {
    int64_t w = of.token_width(), p = of.patch, q = of.patch_frames, C = of.out_channels;
    if (of.packed) {
        std::copy_n(tokens, images * of.tokens * w, latents);
        return;
    }
    int64_t columns = of.width / p, rows = of.height / p, frames = of.frames / q;
    for (int64_t image = 0; image < images; ++image) {
        for (int64_t f = 0; f < frames; ++f) {
            for (int64_t r = 0; r < rows; ++r) {
                for (int64_t c = 0; c < columns; ++c) {
                    for (int64_t k = 0; k < w; ++k, ++tokens) {
                        int64_t channel = k % C, column = k / C % p, row = k / C / p % p, frame = k / C / p / p;
                        int64_t at = ((image * C + channel) * of.frames + f * q + frame) * of.height + r * p + row;
                        latents[at * of.width + c * p + column] = *tokens;
                    }
                }
            }
        }
    }
}

}  // namespace accelaes
