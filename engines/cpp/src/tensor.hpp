// A tensor in memory, as engines and devices are handed it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "half.hpp"

namespace accelaes {

enum class Type : int { f32 = 1, i64 = 7, f16 = 10, bf16 = 16 };  // as ONNX numbers them

ACCELAES_BOTH inline size_t width_of(Type type) { return type == Type::i64 ? 8 : type == Type::f32 ? 4 : 2; }

// Number `at` of an array of fp32, fp16 or bf16.
ACCELAES_BOTH inline float number_of(const void* from, Type type, size_t at) {
    if (type == Type::f32) return static_cast<const float*>(from)[at];
    uint16_t half = static_cast<const uint16_t*>(from)[at];
    return type == Type::f16 ? from_f16(half) : from_bf16(half);
}

ACCELAES_BOTH inline void put_number(void* to, Type type, size_t at, float number) {
    if (type == Type::f32) {
        static_cast<float*>(to)[at] = number;
    } else {
        static_cast<uint16_t*>(to)[at] = type == Type::f16 ? to_f16(number) : to_bf16(number);
    }
}

struct Tensor {
    const char* name;
    Type type;
    void* data;
    const int64_t* shape;
    int rank;
    bool on_host;  // whatever the device
};

struct EngineError {
    int code;
    char sentence[1024];
};

}  // namespace accelaes
