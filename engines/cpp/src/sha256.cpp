#include "sha256.hpp"

#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <vector>

#include "failure.hpp"

namespace accelaes {
namespace {

constexpr std::array<uint32_t, 64> constants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

struct Digest {
    std::array<uint32_t, 8> h = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

    void block(const unsigned char* bytes) {
        std::array<uint32_t, 64> w;
        for (size_t t = 0; t < 16; ++t) {
            w[t] = uint32_t{bytes[4 * t]} << 24 | uint32_t{bytes[4 * t + 1]} << 16 | uint32_t{bytes[4 * t + 2]} << 8 |
                   bytes[4 * t + 3];
        }
        for (size_t t = 16; t < 64; ++t) {
            uint32_t low = rotated(w[t - 15], 7) ^ rotated(w[t - 15], 18) ^ w[t - 15] >> 3;
            uint32_t high = rotated(w[t - 2], 17) ^ rotated(w[t - 2], 19) ^ w[t - 2] >> 10;
            w[t] = w[t - 16] + low + w[t - 7] + high;
        }
        auto [a, b, c, d, e, f, g, last] = h;
        for (size_t t = 0; t < 64; ++t) {
            uint32_t first =
                last + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + constants[t] + w[t];
            uint32_t second = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            last = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
        }
        const uint32_t after[] = {a, b, c, d, e, f, g, last};
        for (size_t k = 0; k < 8; ++k) h[k] += after[k];
    }
};

}  // namespace

std::string sha256_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) refuse(path + " can't be read; copy the bundle again.");
    Digest digest;
    std::vector<unsigned char> buffer(1 << 20);
    uint64_t length = 0;
    for (;;) {
        file.read(reinterpret_cast<char*>(buffer.data()), static_cast<std::streamsize>(buffer.size()));
        auto got = static_cast<size_t>(file.gcount());
        length += got;
        if (got < buffer.size()) {
            buffer.resize(got);
            break;
        }
        for (size_t at = 0; at < got; at += 64) digest.block(buffer.data() + at);
    }
    buffer.push_back(0x80);
    while (buffer.size() % 64 != 56) buffer.push_back(0);
    for (int shift = 56; shift >= 0; shift -= 8) buffer.push_back(static_cast<unsigned char>(8 * length >> shift));
    for (size_t at = 0; at < buffer.size(); at += 64) digest.block(buffer.data() + at);
    std::string hex;
    for (uint32_t word : digest.h) {
        for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[word >> shift & 15];
    }
    return hex;
}

}  // namespace accelaes
