// The mechanisms on a CPU: plain loops in the process's own memory.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <vector>

#include "device.hpp"

namespace accelaes {
namespace {

void* open(int, void*, EngineError*) {
    static char one;
    return &one;
}
void close(void*) {}
void* stream(void*) { return nullptr; }

// On large pages where there is enough: rows are read all over a cache, each on another page.
void* allocate(void*, size_t bytes) {
    constexpr size_t page = size_t{2} << 20;
    if (bytes < page) return std::calloc(bytes == 0 ? 1 : bytes, 1);
    size_t whole = (bytes + page - 1) / page * page;
    void* made = std::aligned_alloc(page, whole);
    if (made == nullptr) return nullptr;
    madvise(made, whole, MADV_HUGEPAGE);
    return std::memset(made, 0, whole);
}
void release(void*, void* data) { std::free(data); }

void write(void*, void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
}
bool read(void*, void* to, const void* from, size_t bytes, EngineError*) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    return true;
}
bool wait(void*, EngineError*) { return true; }

void fill(void*, float* to, size_t count, float number) { std::fill_n(to, count, number); }

void convert(void*, void* to, Type to_type, const void* from, Type from_type, size_t count) {
    for (size_t k = 0; k < count; ++k) put_number(to, to_type, k, number_of(from, from_type, k));
}

void choose(void*, const float* score, int64_t images, int64_t tokens, int64_t n, int64_t copies, int64_t* focus,
            int64_t* background) {
    std::vector<int64_t> order(static_cast<size_t>(tokens));
    for (int64_t image = 0; image < images; ++image, score += tokens) {
        auto before = [score](int64_t a, int64_t b) {
            bool a_none = std::isnan(score[a]), b_none = std::isnan(score[b]);
            if (a_none != b_none) return a_none;
            if (!a_none && score[a] != score[b]) return score[a] > score[b];
            return a < b;
        };
        std::iota(order.begin(), order.end(), int64_t{0});
        if (n < tokens) std::nth_element(order.begin(), order.begin() + n, order.end(), before);
        std::sort(order.begin(), order.begin() + n);
        std::sort(order.begin() + n, order.end());
        for (int64_t row = image; row < copies * images; row += images) {
            std::copy(order.begin(), order.begin() + n, focus + row * n);
            std::copy(order.begin() + n, order.end(), background + row * (tokens - n));
        }
    }
}

void mark(void*, float* marks, Places places) {
    std::fill_n(marks, places.rows * places.tokens, 0.0f);
    for (int64_t row = 0; row < places.rows; ++row) {
        for (int64_t k = 0; k < places.count; ++k)
            marks[row * places.tokens + places.index[row * places.count + k]] = 1.0f;
    }
}

// `work` with the place of a row among all tokens, its place in a call, its row and its token. Rows of `bytes` of the
// tensors `spread` lie where the index says, which the processor doesn't foresee: it is told a little before.
template <typename Work>
void each(const Places& places, int64_t heads, size_t bytes, std::initializer_list<const void*> spread, Work work) {
    constexpr int64_t ahead = 12;
    constexpr size_t line = 64;
    size_t near = 0;
    for (int64_t row = 0; row < places.rows; ++row) {
        const int64_t* index = places.index + row * places.count;
        for (int64_t head = 0; head < heads; ++head) {
            int64_t base = (row * heads + head) * places.tokens;
            for (int64_t k = 0; k < places.count; ++k, ++near) {
                for (const void* tensor : spread) {
                    if (tensor == nullptr || k + ahead >= places.count) continue;
                    const char* soon =
                        static_cast<const char*>(tensor) + static_cast<size_t>(base + index[k + ahead]) * bytes;
                    for (size_t at = 0; at < bytes; at += line) __builtin_prefetch(soon + at);
                }
                work(static_cast<size_t>(base + index[k]), near, row * places.tokens + index[k]);
            }
        }
    }
}

void gather(void*, const Moved* moved, size_t count, Places places) {
    for (const Moved* one = moved; one < moved + count; ++one) {
        const char* from = static_cast<const char*>(one->from);
        char* to = static_cast<char*>(one->to);
        each(places, one->heads, one->bytes, {from}, [&](size_t far, size_t near, int64_t) {
            std::memcpy(to + near * one->bytes, from + far * one->bytes, one->bytes);
        });
    }
}

void scatter(void*, const Moved* moved, size_t count, Places places) {
    for (const Moved* one = moved; one < moved + count; ++one) {
        const char* from = static_cast<const char*>(one->from);
        char *to = static_cast<char*>(one->to), *kept = static_cast<char*>(one->kept);
        each(places, one->heads, one->bytes, {to, kept}, [&](size_t far, size_t near, int64_t) {
            if (kept != nullptr) std::memcpy(kept + far * one->bytes, to + far * one->bytes, one->bytes);
            std::memcpy(to + far * one->bytes, from + near * one->bytes, one->bytes);
        });
    }
}

void carry(void*, const Carried* carried, size_t count, Places places, const float* distance) {
    for (const Carried* one = carried; one < carried + count; ++one) {
        auto width = static_cast<size_t>(one->width);
        size_t bytes = width * width_of(one->type);
        if (one->type == Type::f32) {
            const float *last = static_cast<const float*>(one->last), *before = static_cast<const float*>(one->before);
            each(places, one->heads, bytes, {one->last, one->before}, [&](size_t far, size_t near, int64_t token) {
                const float *a = last + far * width, *b = before + far * width;
                float *to = static_cast<float*>(one->to) + near * width, beyond = distance[token];
                for (size_t d = 0; d < width; ++d) to[d] = a[d] + (a[d] - b[d]) * beyond;
            });
            continue;
        }
        each(places, one->heads, bytes, {one->last, one->before}, [&](size_t far, size_t near, int64_t token) {
            for (size_t d = 0; d < width; ++d) {
                float last = number_of(one->last, one->type, far * width + d);
                float before = number_of(one->before, one->type, far * width + d);
                put_number(one->to, one->type, near * width + d, last + (last - before) * distance[token]);
            }
        });
    }
}

void unpatchify(void*, Patches patches, const float* tokens, float* latents) {
    // Every token has its numbers at the same distances from its first, which are found once.
    int64_t w = patches.token_width();
    std::vector<int64_t> beyond(static_cast<size_t>(w));
    for (int64_t k = 0; k < w; ++k) beyond[static_cast<size_t>(k)] = unpatched(patches, 0, 0, k);
    for (int64_t image = 0; image < patches.images; ++image) {
        for (int64_t token = 0; token < patches.tokens; ++token) {
            float* to = latents + unpatched(patches, image, token, 0);
            for (int64_t k = 0; k < w; ++k) to[beyond[static_cast<size_t>(k)]] = *tokens++;
        }
    }
}

void move(void*, Move by, const float* prediction, float* latents, float* sample, const float* earlier, size_t count) {
    for (size_t k = 0; k < count; ++k) {
        latents[k] = moved(by, latents[k], prediction[k], sample == nullptr ? nullptr : sample + k,
                           earlier == nullptr ? 0 : earlier[k]);
    }
}

void copy(void*, void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
}

}  // namespace

const DeviceFunctions* host_functions() {
    static const DeviceFunctions functions = {device_version, "cpu",  open,    close, stream,     allocate, release,
                                              write,          read,   wait,    copy,  fill,       convert,  choose,
                                              mark,           gather, scatter, carry, unpatchify, move};
    return &functions;
}

}  // namespace accelaes
