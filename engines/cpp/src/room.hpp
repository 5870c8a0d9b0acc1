// How many numbers a tensor has, where its sizes come from a file that anybody may have written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "failure.hpp"

namespace accelaes {

// The product of sizes; refused where it is beyond any machine's memory, or a size is negative.
template <typename Sizes>
size_t product_of(const Sizes& sizes) {
    constexpr int64_t most = int64_t{1} << 44;
    int64_t count = 1;
    for (int64_t size : sizes) {
        if (size < 0 || (size > 0 && count > most / size)) {
            refuse(
                "The bundle's tensors are larger than any machine's memory: its manifest is damaged; build it again.");
        }
        count *= size;
    }
    return static_cast<size_t>(count);
}

inline size_t room(std::initializer_list<int64_t> sizes) { return product_of(sizes); }
inline size_t room(const std::vector<int64_t>& shape) { return product_of(shape); }

}  // namespace accelaes
