// What is cached of every layer, of all N tokens, and the rows of it that engine calls read and write.
#pragma once

#include <cstdint>
#include <vector>

#include "device.hpp"
#include "manifest.hpp"

namespace accelaes {

class Cache {
   public:
    struct Entry {
        CacheEntry of;
        char *full, *earlier, *fresh, *background;  // `earlier` is null where one is kept

        size_t row() const { return width_of(of.type) * static_cast<size_t>(of.head_dim); }
        size_t bytes(int64_t rows, int64_t tokens) const {
            return static_cast<size_t>(rows * of.heads * tokens) * row();
        }
    };

    // `keeps_two`: what there was before the last is kept as well, to carry on from.
    Cache(const Device& device, const Manifest& manifest, int64_t rows, int64_t largest_focus,
          int64_t largest_background, bool keeps_two);

    // Before a dense step writes into the full tensors.
    void put_by();
    // Read the rows at index [rows, m] for an engine call; `distance` [rows, N] or null, in gaps beyond the last.
    void read(const int64_t* index, int64_t m, const float* distance);
    // Write what a sparse step made of n tokens back at index [rows, n]; `keep_earlier`: what it replaces is read
    // again.
    void write(const int64_t* index, int64_t n, bool keep_earlier);

    // Where the first layer's full tensor is: dense steps write into two of them by turns where two are kept.
    const char* first() const { return entries.empty() ? nullptr : entries.front().full; }

    std::vector<Entry> entries;
    static size_t bytes(const Manifest& manifest, int64_t rows, int64_t focus, int64_t background, bool keeps_two);

   private:
    const Device& device_;
    int64_t rows_, tokens_;
    Buffer<char> all_;          // what entries point into
    std::vector<Moved> moved_;  // room for a call's
    std::vector<Carried> carried_;
};

}  // namespace accelaes
