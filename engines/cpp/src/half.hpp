// Numbers of 16 bits, to and from fp32, on a CPU and in CUDA kernels alike. Rounded to the nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define ACCELAES_BOTH __host__ __device__
#else
#define ACCELAES_BOTH
#endif

namespace accelaes {

ACCELAES_BOTH inline uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

ACCELAES_BOTH inline float float_of(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

ACCELAES_BOTH inline float from_f16(uint16_t half) {
    uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    // Subnormal ones too: the exponent's bias is made up for by a multiplication.
    return float_of(sign | bits_of(float_of(magnitude << 13) * float_of(0x77800000u)));
}

ACCELAES_BOTH inline uint16_t to_f16(float number) {
    uint32_t bits = bits_of(number), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65,520 and more
    if (magnitude < 0x38800000u) {  // below 2^-14: adding .5 leaves the number in steps of 2^-24
        uint32_t rounded = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
        return static_cast<uint16_t>(sign | rounded);
    }
    uint32_t odd = magnitude >> 13 & 1u;
    return static_cast<uint16_t>(sign | (magnitude - (112u << 23) + 0xfffu + odd) >> 13);
}

ACCELAES_BOTH inline float from_bf16(uint16_t half) { return float_of(static_cast<uint32_t>(half) << 16); }

ACCELAES_BOTH inline uint16_t to_bf16(float number) {
    uint32_t bits = bits_of(number);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace accelaes
