// What a bundle has of the pipeline around the transformer: text encoders' conditioning, and pictures from latents.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace accelaes {

// Texts as a tokenizer gives them, [rows, length]; `mask` is 0 at padding.
struct Text {
    int64_t rows = 0, length = 0;
    std::vector<int64_t> ids, mask;
};

struct Numbers {
    std::vector<int64_t> shape;
    std::vector<float> data;
};

// What a text encoder makes of a text's rows, by the names of its outputs.
std::map<std::string, Numbers> run_encoder(const Bundle& bundle, const Encoder& encoder, const Text& text);

// The conditioning of these rows, by the engine's names.
//
// `texts` are by tokenizer, all of as many rows.
std::map<std::string, Numbers> encoded(const Bundle& bundle, const std::map<std::string, Text>& texts);

// Pictures [b, H, W, 3] of denoised latents [b, ...].
void decode(const Bundle& bundle, const std::vector<float>& latents, int64_t images, uint8_t* pixels);

}  // namespace accelaes
