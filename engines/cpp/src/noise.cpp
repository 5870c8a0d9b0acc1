#include "noise.hpp"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "failure.hpp"

namespace accelaes {
namespace {

constexpr size_t block = 16;  // numbers made together

uint32_t bits_of(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
}

float number_of(uint32_t bits) {
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

// c[0] x^n + ... + c[n], every step rounded once.
template <size_t count>
float polynomial(float x, const float (&c)[count]) {
    float sum = c[0];
    for (size_t k = 1; k < count; ++k) sum = std::fma(sum, x, c[k]);
    return sum;
}

// Natural logarithm of a number in [2^-24, 1]: of the mantissa by a polynomial about 1, and of the exponent in two
// parts.
float logarithm(float x) {
    static const float c[] = {7.0376836292E-2f,  -1.1514610310E-1f, 1.1676998740E-1f,
                              -1.2420140846E-1f, 1.4249322787E-1f,  -1.6668057665E-1f,
                              2.0000714765E-1f,  -2.4999993993E-1f, 3.3333331174E-1f};
    constexpr uint32_t exponent = 0x7f800000u;
    auto e = static_cast<float>(static_cast<int32_t>(bits_of(x) >> 23) - 0x7e);
    float m = number_of((bits_of(x) & ~exponent) | bits_of(0.5f));  // in [1/2, 1)
    if (m < 0.707106781186547524f) {
        e -= 1.0f;
        m = (m - 1.0f) + m;
    } else {
        m = m - 1.0f;
    }
    float square = m * m;
    float rest = std::fma(polynomial(m, c) * m, square, e * -2.12194440e-4f);
    rest = std::fma(-square, 0.5f, rest);
    return std::fma(e, 0.693359375f, m + rest);
}

// Sine and cosine of an angle in [0, 2 pi): of what is left of it past a multiple of a quarter of pi, in three parts.
void sine_and_cosine(float angle, float* sine, float* cosine) {
    static const float of_sine[] = {-1.9515295891E-4f, 8.3321608736E-3f, -1.6666654611E-1f};
    static const float of_cosine[] = {2.443315711809948E-5f, -1.388731625493765E-3f, 4.166664568298827E-2f};
    auto octant = (static_cast<int32_t>(angle * 1.27323954473516f) + 1) & ~1;
    auto turns = static_cast<float>(octant);
    float x = angle;
    for (float part : {-0.78515625f, -2.4187564849853515625e-4f, -3.77489497744594108e-8f})
        x = std::fma(turns, part, x);
    float z = x * x;
    float c = std::fma(polynomial(z, of_cosine) * z, z, -(z * 0.5f)) + 1.0f;
    float s = std::fma(polynomial(z, of_sine) * z, x, x);
    bool swapped = (octant & 2) != 0;
    float sign_of_sine = (octant & 4) != 0 ? -1.0f : 1.0f;
    float sign_of_cosine = ((octant - 2) & 4) != 0 ? 1.0f : -1.0f;
    *sine = sign_of_sine * (swapped ? c : s);
    *cosine = sign_of_cosine * (swapped ? s : c);
}

void make_normal(float* uniform) {
    constexpr size_t half = block / 2;
    for (size_t k = 0; k < half; ++k) {
        float radius = std::sqrt(-2.0f * logarithm(1.0f - uniform[k]));
        float sine, cosine;
        sine_and_cosine(6.283185307179586f * uniform[k + half], &sine, &cosine);
        uniform[k] = radius * cosine + 0.0f;
        uniform[k + half] = radius * sine + 0.0f;
    }
}

}  // namespace

void draw_normal(uint64_t seed, float* numbers, size_t count) {
    if (count < block) refuse("Fewer than 16 numbers of noise can't be drawn from a seed; give the latents.");
    std::mt19937 twister(static_cast<uint32_t>(seed));
    auto uniform = [&] { return static_cast<float>(twister() & 0xffffffu) * (1.0f / 16777216.0f); };
    for (size_t k = 0; k < count; ++k) numbers[k] = uniform();
    for (size_t k = 0; k + block <= count; k += block) make_normal(numbers + k);
    if (count % block != 0) {  // the last 16 anew
        float* last = numbers + (count - block);
        for (size_t k = 0; k < block; ++k) last[k] = uniform();
        make_normal(last);
    }
}

void draw_latents(const Manifest& manifest, uint64_t seed, int64_t images, float* latents) {
    int64_t C = manifest.channels, F = manifest.frames, H = manifest.height, W = manifest.width;
    auto count = static_cast<size_t>(images * C * F * H * W);
    if (!manifest.packed) {
        draw_normal(seed, latents, count);
        return;
    }
    std::vector<float> drawn(count);
    draw_normal(seed, drawn.data(), count);
    // A token's numbers are channel, then frame, row and column within its patch.
    int64_t p = manifest.patch, q = manifest.patch_frames, width = C * q * p * p;
    for (int64_t image = 0; image < images; ++image) {
        for (int64_t f = 0; f < F; ++f) {
            for (int64_t row = 0; row < H; ++row) {
                for (int64_t column = 0; column < W; ++column) {
                    int64_t token = ((f / q) * (H / p) + row / p) * (W / p) + column / p;
                    int64_t within = ((f % q) * p + row % p) * p + column % p;
                    for (int64_t c = 0; c < C; ++c) {
                        int64_t from = (((image * C + c) * F + f) * H + row) * W + column;
                        int64_t to = (image * manifest.tokens + token) * width + c * q * p * p + within;
                        latents[to] = drawn[static_cast<size_t>(from)];
                    }
                }
            }
        }
    }
}

}  // namespace accelaes
