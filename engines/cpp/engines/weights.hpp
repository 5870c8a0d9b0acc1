// A safetensors file, mapped into memory: weights that several graphs may share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mapped.hpp"

namespace accelaes {

struct Weight {
    std::string dtype;  // as safetensors writes it: F32, I64, ...
    std::vector<int64_t> shape;
    void* data;
    size_t bytes;
};

class Weights {
   public:
    // Refused for a damaged file.
    explicit Weights(const std::string& path);

    const std::map<std::string, Weight>& all() const { return all_; }

   private:
    Mapped file_;
    std::map<std::string, Weight> all_;
};

}  // namespace accelaes
