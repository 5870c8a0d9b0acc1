// What fuzz targets share. A target may refuse its input with a sentence; anything else ends the process.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>

#include "failure.hpp"

namespace fuzz {

// What is before the first zero byte, and what is behind it.
inline std::pair<std::string, std::string> halves(const uint8_t* data, size_t size) {
    std::string whole(reinterpret_cast<const char*>(data), size);
    auto zero = whole.find('\0');
    if (zero == std::string::npos) return {whole, ""};
    return {whole.substr(0, zero), whole.substr(zero + 1)};
}

// The path of a file with these bytes, in a folder of this process.
inline std::string file(const std::string& bytes, const char* name) {
    static const std::string folder = [] {
        const char* base = std::getenv("TMPDIR");
        std::string pattern = std::string(base == nullptr ? "/tmp" : base) + "/accelaes-fuzz-XXXXXX";
        if (mkdtemp(pattern.data()) == nullptr) std::abort();
        return pattern;
    }();
    std::string path = folder + "/" + name;
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path;
}

template <typename Work>
void tried(Work work) {
    try {
        work();
    } catch (const accelaes::Failure& failure) {
        if (failure.sentence.empty()) std::abort();
    }
}

}  // namespace fuzz
