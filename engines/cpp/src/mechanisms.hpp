// What is done to a run's tensors where they are: on a CPU (host.cpp) or in CUDA's memory (cuda/). No policy: only the
// rule that ties go to the lower index. Plain functions and structs, as a device lies in a shared object of its own.
//
// Nothing here waits but `read` and `wait`: work is done in order, on the caller's stream where there is one. A failure
// of a device shows when it is waited for.
#pragma once

#include "tensor.hpp"

namespace accelaes {

// Which rows are moved: index [rows, count] among `tokens`.
struct Places {
    int64_t rows, tokens, count;
    const int64_t* index;
};

// Tensors [rows, heads, tokens, width] of one cache and [rows, heads, count, width] of a call.
struct Moved {
    const void* from;
    void* to;
    void* kept;  // scattering first keeps here, where it isn't null, what it writes over
    int64_t heads;
    size_t bytes;  // of `width` numbers
};

// Rows carried on from the two last: last + (last - before) x distance.
struct Carried {
    const void *last, *before;
    void* to;
    int64_t heads, width;
    Type type;
};

// From tokens [images, N, w] to latents [images, C, (F,) H, W], where w is a patch of F, H, W and C, in that order.
struct Patches {
    int64_t images, tokens, channels, frames, height, width, patch, patch_frames;

    ACCELAES_BOTH int64_t token_width() const { return patch_frames * patch * patch * channels; }
};

// One step of a solver, for a number at a time: solver.cpp fills it in.
struct Move {
    enum class Kind : int { euler, ddim, dpm };
    enum class Prediction : int { noise, sample, velocity };

    Kind kind;
    Prediction prediction;
    bool first;                       // DPM-Solver++: of first order
    float step;                       // Euler's
    float signal, noise;              // of the latents,
    float signal_after, noise_after;  // and of what they become; DPM-Solver++'s `kept` and `shrunk`
    float most;                       // DDIM clips the sample to it; 0: not
    float slope, ratio;               // DPM-Solver++'s second order
};

struct DeviceFunctions {
    int version;
    const char* kind;  // "cpu" or "cuda"

    // `stream`: the caller's, or null for one of its own; `index` of the device among its kind.
    void* (*open)(int index, void* stream, EngineError* error);
    void (*close)(void* device);
    // The stream that work is done on, whose device becomes the calling thread's; null on a CPU.
    void* (*stream)(void* device);
    // Zeroed; null where there is too little memory.
    void* (*allocate)(void* device, size_t bytes);
    void (*release)(void* device, void* data);
    // From and to the host's memory; the second waits for all work before it.
    void (*write)(void* device, void* to, const void* from, size_t bytes);
    bool (*read)(void* device, void* to, const void* from, size_t bytes, EngineError* error);
    bool (*wait)(void* device, EngineError* error);

    void (*copy)(void* device, void* to, const void* from, size_t bytes);
    void (*fill)(void* device, float* to, size_t count, float number);
    void (*convert)(void* device, void* to, Type to_type, const void* from, Type from_type, size_t count);
    // The n tokens of the largest score [images, tokens] of each image, ascending, and the others; `copies` times, one
    // behind another: focus [copies x images, n], background [copies x images, tokens - n]. NaN counts as largest.
    void (*choose)(void* device, const float* score, int64_t images, int64_t tokens, int64_t n, int64_t copies,
                   int64_t* focus, int64_t* background);
    // marks [rows, tokens]: 1 at the places, 0 elsewhere.
    void (*mark)(void* device, float* marks, Places places);
    void (*gather)(void* device, const Moved* moved, size_t count, Places places);
    void (*scatter)(void* device, const Moved* moved, size_t count, Places places);
    // `distance` [rows, tokens].
    void (*carry)(void* device, const Carried* carried, size_t count, Places places, const float* distance);
    void (*unpatchify)(void* device, Patches patches, const float* tokens, float* latents);
    // `sample` and `earlier`: as this and the last step predict it; null but for DPM-Solver++.
    void (*move)(void* device, Move move, const float* prediction, float* latents, float* sample, const float* earlier,
                 size_t count);
};

constexpr int device_version = 1;
using DeviceEntry = const DeviceFunctions* (*)();  // exported as `accelaes_device`

// Where number k of a token lies in latents.
ACCELAES_BOTH inline int64_t unpatched(const Patches& of, int64_t image, int64_t token, int64_t k) {
    int64_t p = of.patch, q = of.patch_frames, C = of.channels, columns = of.width / p, rows = of.height / p;
    int64_t c = token % columns, r = token / columns % rows, f = token / columns / rows;
    int64_t channel = k % C, column = k / C % p, row = k / C / p % p, frame = k / C / p / p;
    int64_t at = ((image * C + channel) * of.frames + f * q + frame) * of.height + r * p + row;
    return at * of.width + c * p + column;
}

// A number of the latents, moved by a step; `sample` is where this step's prediction of it is kept.
ACCELAES_BOTH inline float moved(const Move& by, float x, float own, float* sample, float earlier) {
    if (by.kind == Move::Kind::euler) return x + by.step * own;
    float found = own, epsilon = own;
    if (by.prediction == Move::Prediction::noise) {
        found = (x - by.noise * own) / by.signal;
    } else if (by.prediction == Move::Prediction::sample) {
        if (by.kind == Move::Kind::ddim) epsilon = (x - by.signal * own) / by.noise;
    } else {
        found = by.signal * x - by.noise * own;
        epsilon = by.signal * own + by.noise * x;
    }
    if (by.kind == Move::Kind::ddim) {
        if (by.most > 0) found = found < -by.most ? -by.most : found > by.most ? by.most : found;
        return by.signal_after * found + by.noise_after * epsilon;
    }
    *sample = found;
    float to = by.noise_after * x - by.signal_after * found;
    return by.first ? to : to + by.slope * (1.0f / by.ratio * (found - earlier));
}

}  // namespace accelaes
