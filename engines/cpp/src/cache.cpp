#include "cache.hpp"

#include <cstring>

#include "room.hpp"

namespace accelaes {

Cache::Cache(const Manifest& manifest, int64_t rows, int64_t focus, int64_t background, bool keeps_two)
    : rows_(rows), tokens_(manifest.tokens) {
    for (const auto& entry : manifest.cache) {
        auto size = [&](int64_t count) { return room({rows, entry.heads, count, entry.head_dim}); };
        entries.push_back({entry.heads, entry.head_dim, std::vector<float>(size(tokens_)),
                           std::vector<float>(keeps_two ? size(tokens_) : 0), std::vector<float>(size(focus)),
                           std::vector<float>(size(background))});
    }
}

size_t Cache::bytes(const Manifest& manifest, int64_t rows, int64_t focus, int64_t background, bool keeps_two) {
    size_t numbers = 0;
    for (const auto& entry : manifest.cache) {
        int64_t tokens = (keeps_two ? 2 : 1) * manifest.tokens + focus + background;
        numbers += room({rows, entry.heads, entry.head_dim, tokens});
    }
    return sizeof(float) * numbers;
}

void Cache::put_by() {
    for (auto& entry : entries) {
        if (!entry.earlier.empty()) entry.earlier.swap(entry.full);  // all of the full one is written over next
    }
}

void Cache::read(const int64_t* index, int64_t m, const float* distance) {
    for (auto& entry : entries) {
        auto width = static_cast<size_t>(entry.head_dim);
        float* out = entry.background.data();
        for (int64_t row = 0; row < rows_; ++row) {
            for (int64_t head = 0; head < entry.heads; ++head) {
                auto base = static_cast<size_t>((row * entry.heads + head) * tokens_);
                for (int64_t k = 0; k < m; ++k, out += width) {
                    int64_t token = index[row * m + k];
                    const float* last = entry.full.data() + (base + static_cast<size_t>(token)) * width;
                    if (distance == nullptr) {
                        std::memcpy(out, last, sizeof(float) * width);
                        continue;
                    }
                    const float* before = entry.earlier.data() + (base + static_cast<size_t>(token)) * width;
                    float beyond = distance[row * tokens_ + token];
                    for (size_t d = 0; d < width; ++d) out[d] = last[d] + (last[d] - before[d]) * beyond;
                }
            }
        }
    }
}

void Cache::write(const int64_t* index, int64_t n) {
    for (auto& entry : entries) {
        auto width = static_cast<size_t>(entry.head_dim);
        const float* in = entry.fresh.data();
        for (int64_t row = 0; row < rows_; ++row) {
            for (int64_t head = 0; head < entry.heads; ++head) {
                auto base = static_cast<size_t>((row * entry.heads + head) * tokens_);
                for (int64_t k = 0; k < n; ++k, in += width) {
                    size_t at = (base + static_cast<size_t>(index[row * n + k])) * width;
                    if (!entry.earlier.empty())
                        std::memcpy(entry.earlier.data() + at, entry.full.data() + at, sizeof(float) * width);
                    std::memcpy(entry.full.data() + at, in, sizeof(float) * width);
                }
            }
        }
    }
}

}  // namespace accelaes
