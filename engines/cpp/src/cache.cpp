#include "cache.hpp"

#include <utility>

#include "room.hpp"

namespace accelaes {
namespace {

// Of one tensor, as they lie one behind another.
size_t bytes_of(const CacheEntry& entry, int64_t rows, int64_t tokens) {
    constexpr size_t alignment = 256;
    size_t bytes = room({rows, entry.heads, entry.head_dim, tokens, static_cast<int64_t>(width_of(entry.type))});
    return (bytes + alignment - 1) / alignment * alignment;
}

}  // namespace

Cache::Cache(const Device& device, const Manifest& manifest, int64_t rows, int64_t focus, int64_t background,
             bool keeps_two)
    : device_(device),
      rows_(rows),
      tokens_(manifest.tokens),
      all_(device, bytes(manifest, rows, focus, background, keeps_two)) {
    char* next = all_.data();
    for (const auto& entry : manifest.cache) {
        auto tensor = [&](int64_t tokens) {
            char* own = next;
            next += bytes_of(entry, rows, tokens);
            return own;
        };
        char *full = tensor(tokens_), *earlier = keeps_two ? tensor(tokens_) : nullptr, *fresh = tensor(focus);
        entries.push_back({entry, full, earlier, fresh, tensor(background)});
    }
    moved_.reserve(entries.size());
    carried_.reserve(entries.size());
}

size_t Cache::bytes(const Manifest& manifest, int64_t rows, int64_t focus, int64_t background, bool keeps_two) {
    size_t all = 0;
    for (const auto& entry : manifest.cache) {
        all += (keeps_two ? 2 : 1) * bytes_of(entry, rows, manifest.tokens);
        all += bytes_of(entry, rows, focus) + bytes_of(entry, rows, background);
    }
    return all;
}

void Cache::put_by() {
    for (auto& entry : entries) {
        if (entry.earlier != nullptr) std::swap(entry.earlier, entry.full);  // all of the full one is written over next
    }
}

void Cache::read(const int64_t* index, int64_t m, const float* distance) {
    Places places = {rows_, tokens_, m, index};
    if (distance == nullptr) {
        moved_.clear();
        for (auto& entry : entries)
            moved_.push_back({entry.full, entry.background, nullptr, entry.of.heads, entry.row()});
        device_(&DeviceFunctions::gather, moved_.data(), moved_.size(), places);
        return;
    }
    carried_.clear();
    for (auto& entry : entries) {
        carried_.push_back(
            {entry.full, entry.earlier, entry.background, entry.of.heads, entry.of.head_dim, entry.of.type});
    }
    device_(&DeviceFunctions::carry, carried_.data(), carried_.size(), places, distance);
}

void Cache::write(const int64_t* index, int64_t n, bool keep_earlier) {
    moved_.clear();
    for (auto& entry : entries) {
        char* kept = keep_earlier ? entry.earlier : nullptr;
        moved_.push_back({entry.fresh, entry.full, kept, entry.of.heads, entry.row()});
    }
    device_(&DeviceFunctions::scatter, moved_.data(), moved_.size(), Places{rows_, tokens_, n, index});
}

}  // namespace accelaes
