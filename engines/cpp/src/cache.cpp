#include "cache.hpp"

#include "room.hpp"

namespace accelaes {
namespace {

size_t bytes_of(const CacheEntry& entry, int64_t rows, int64_t tokens) {
    return room({rows, entry.heads, entry.head_dim, tokens, static_cast<int64_t>(width_of(entry.type))});
}

}  // namespace

Cache::Cache(const Device& device, const Manifest& manifest, int64_t rows, int64_t focus, int64_t background,
             bool keeps_two)
    : device_(device), rows_(rows), tokens_(manifest.tokens) {
    for (const auto& entry : manifest.cache) {
        auto buffer = [&](int64_t tokens) { return Buffer<char>(device, bytes_of(entry, rows, tokens)); };
        entries.push_back({entry, buffer(tokens_), buffer(keeps_two ? tokens_ : 0), buffer(focus), buffer(background)});
    }
    moved_.reserve(entries.size());
    carried_.reserve(entries.size());
}

size_t Cache::bytes(const Manifest& manifest, int64_t rows, int64_t focus, int64_t background, bool keeps_two) {
    size_t all = 0;
    for (const auto& entry : manifest.cache)
        all += bytes_of(entry, rows, (keeps_two ? 2 : 1) * manifest.tokens + focus + background);
    return all;
}

void Cache::put_by() {
    for (auto& entry : entries) {
        if (!entry.earlier.empty()) entry.earlier.swap(entry.full);  // all of the full one is written over next
    }
}

void Cache::read(const int64_t* index, int64_t m, const float* distance) {
    Places places = {rows_, tokens_, m, index};
    if (distance == nullptr) {
        moved_.clear();
        for (auto& entry : entries)
            moved_.push_back({entry.full.data(), entry.background.data(), nullptr, entry.of.heads, entry.row()});
        device_(&DeviceFunctions::gather, moved_.data(), moved_.size(), places);
        return;
    }
    carried_.clear();
    for (auto& entry : entries) {
        carried_.push_back({entry.full.data(), entry.earlier.data(), entry.background.data(), entry.of.heads,
                            entry.of.head_dim, entry.of.type});
    }
    device_(&DeviceFunctions::carry, carried_.data(), carried_.size(), places, distance);
}

void Cache::write(const int64_t* index, int64_t n, bool keep_earlier) {
    moved_.clear();
    for (auto& entry : entries) {
        char* kept = entry.earlier.empty() || !keep_earlier ? nullptr : entry.earlier.data();
        moved_.push_back({entry.fresh.data(), entry.full.data(), kept, entry.of.heads, entry.row()});
    }
    device_(&DeviceFunctions::scatter, moved_.data(), moved_.size(), Places{rows_, tokens_, n, index});
}

}  // namespace accelaes
