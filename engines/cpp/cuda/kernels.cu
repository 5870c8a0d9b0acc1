#include "kernels.hpp"

#include "launch.hpp"

namespace accelaes::cuda {
namespace {

constexpr unsigned small_block = 256;  // threads of whatever goes number by number
constexpr unsigned choosing = 1024;    // and of the block that chooses an image's tokens
constexpr size_t batch = 48;           // tensors in one launch: their addresses are a kernel's parameters

// Blocks that count numbers take; a kernel's loop goes on from grid to grid.
dim3 blocks(size_t count) {
    size_t wanted = (count + small_block - 1) / small_block;
    return dim3(static_cast<unsigned>(wanted > 8192 ? 8192 : wanted));
}

__device__ size_t first_number() { return size_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ size_t stride() { return size_t{gridDim.x} * blockDim.x; }

__global__ void fill_numbers(float* to, size_t count, float number) {
    for (size_t k = first_number(); k < count; k += stride()) to[k] = number;
}

__global__ void convert_numbers(void* to, Type to_type, const void* from, Type from_type, size_t count) {
    for (size_t k = first_number(); k < count; k += stride()) put_number(to, to_type, k, number_of(from, from_type, k));
}

__global__ void mark_places(float* marks, Places places) {
    auto count = static_cast<size_t>(places.rows * places.count);
    for (size_t k = first_number(); k < count; k += stride()) {
        int64_t row = static_cast<int64_t>(k) / places.count;
        marks[row * places.tokens + places.index[k]] = 1.0f;
    }
}

// A key that is larger where the number is: +0 and -0 are one, what is no number is the largest.
__device__ unsigned ordered(float number) {
    if (number != number) return ~0u;
    unsigned bits = bits_of(number == 0.0f ? 0.0f : number);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The sum of what the threads before this one of a block have: two numbers of 32 bits in one of 64.
__device__ unsigned long long sum_before(unsigned long long own, unsigned long long* of_warps) {
    const unsigned lane = threadIdx.x & 31u, warp = threadIdx.x >> 5;
    unsigned long long sum = own;
    for (unsigned d = 1; d < 32; d <<= 1) {
        unsigned long long other = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += other;
    }
    if (lane == 31) of_warps[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        unsigned long long of_warp = of_warps[lane];
        for (unsigned d = 1; d < 32; d <<= 1) {
            unsigned long long other = __shfl_up_sync(~0u, of_warp, d);
            if (lane >= d) of_warp += other;
        }
        of_warps[lane] = of_warp;
    }
    __syncthreads();
    unsigned long long before = warp > 0 ? of_warps[warp - 1] : 0;
    __syncthreads();
    return before + sum - own;
}

// One block an image, and no memory beside: four passes over the keys' bytes find the n-th largest, one writes.
__global__ void __launch_bounds__(choosing) choose_tokens(const float* score, int64_t images, int tokens, int n,
                                                          int64_t copies, int64_t* focus, int64_t* background) {
    __shared__ unsigned histogram[256];
    __shared__ unsigned prefix, left;
    __shared__ unsigned long long of_warps[32];
    const float* own = score + size_t{blockIdx.x} * static_cast<size_t>(tokens);
    const int me = static_cast<int>(threadIdx.x), all = static_cast<int>(blockDim.x);
    if (me == 0) prefix = 0, left = static_cast<unsigned>(n);
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int k = me; k < 256; k += all) histogram[k] = 0;
        __syncthreads();
        const unsigned high = shift == 24 ? 0u : ~0u << (shift + 8), wanted = prefix;
        for (int i = me; i < tokens; i += all) {
            unsigned key = ordered(own[i]);
            if ((key & high) == (wanted & high)) atomicAdd(&histogram[key >> shift & 255u], 1u);
        }
        __syncthreads();
        if (me == 0) {
            int digit = 255;
            unsigned need = left;
            while (digit > 0 && histogram[digit] < need) need -= histogram[digit--];
            prefix |= static_cast<unsigned>(digit) << shift, left = need;
        }
        __syncthreads();
    }
    const unsigned threshold = prefix, ties = left;
    const int each = (tokens + all - 1) / all, first = me * each, last = first + each < tokens ? first + each : tokens;
    unsigned above = 0, equal = 0;
    for (int i = first; i < last; ++i) {
        unsigned key = ordered(own[i]);
        above += key > threshold, equal += key == threshold;
    }
    unsigned long long before = sum_before(static_cast<unsigned long long>(above) << 32 | equal, of_warps);
    auto a = static_cast<unsigned>(before >> 32), e = static_cast<unsigned>(before);
    for (int i = first; i < last; ++i) {
        unsigned key = ordered(own[i]);
        const bool chosen = key > threshold || (key == threshold && e < ties);
        const unsigned place = a + (e < ties ? e : ties);
        for (int64_t c = 0; c < copies; ++c) {
            const int64_t row = c * images + blockIdx.x;
            if (chosen) {
                focus[row * n + place] = i;
            } else {
                background[row * (tokens - n) + (i - static_cast<int>(place))] = i;
            }
        }
        a += key > threshold, e += key == threshold;
    }
}

struct Addresses {
    const void* from[batch];
    void* to[batch];
    void* kept[batch];
};

// Tensor blockIdx.z, row and head blockIdx.y; every thread moves a piece of a row's bytes.
template <typename Piece, bool scattering>
__global__ void move_rows(Addresses addresses, Places places, int64_t heads, int64_t pieces) {
    const int64_t row_and_head = blockIdx.y, row = row_and_head / heads;
    const Piece* from = static_cast<const Piece*>(addresses.from[blockIdx.z]);
    Piece *to = static_cast<Piece*>(addresses.to[blockIdx.z]), *kept = static_cast<Piece*>(addresses.kept[blockIdx.z]);
    auto count = static_cast<size_t>(places.count * pieces);
    for (size_t k = first_number(); k < count; k += stride()) {
        const int64_t j = static_cast<int64_t>(k) / pieces, piece = static_cast<int64_t>(k) - j * pieces;
        const int64_t token = places.index[row * places.count + j];
        const int64_t far = (row_and_head * places.tokens + token) * pieces + piece;
        const int64_t near = (row_and_head * places.count + j) * pieces + piece;
        if (!scattering) {
            to[near] = from[far];
        } else {
            if (kept != nullptr) kept[far] = to[far];
            to[far] = from[near];
        }
    }
}

__global__ void carry_rows(Addresses addresses, Places places, int64_t heads, int64_t width, Type type,
                           const float* distance) {
    const int64_t row_and_head = blockIdx.y, row = row_and_head / heads;
    const void *last = addresses.from[blockIdx.z], *before = addresses.kept[blockIdx.z];
    void* to = addresses.to[blockIdx.z];
    auto count = static_cast<size_t>(places.count * width);
    for (size_t k = first_number(); k < count; k += stride()) {
        const int64_t j = static_cast<int64_t>(k) / width, d = static_cast<int64_t>(k) - j * width;
        const int64_t token = places.index[row * places.count + j];
        const auto far = static_cast<size_t>((row_and_head * places.tokens + token) * width + d);
        const auto near = static_cast<size_t>((row_and_head * places.count + j) * width + d);
        const float own = number_of(last, type, far);
        put_number(to, type, near, own + (own - number_of(before, type, far)) * distance[row * places.tokens + token]);
    }
}

__global__ void unpatchify_numbers(Patches patches, const float* tokens, float* latents) {
    const int64_t w = patches.token_width();
    auto count = static_cast<size_t>(patches.images * patches.tokens * w);
    for (size_t at = first_number(); at < count; at += stride()) {
        const int64_t token = static_cast<int64_t>(at) / w, k = static_cast<int64_t>(at) - token * w;
        latents[unpatched(patches, token / patches.tokens, token % patches.tokens, k)] = tokens[at];
    }
}

__global__ void move_numbers(Move by, const float* prediction, float* latents, float* sample, const float* earlier,
                             size_t count) {
    for (size_t k = first_number(); k < count; k += stride()) {
        latents[k] = moved(by, latents[k], prediction[k], sample == nullptr ? nullptr : sample + k,
                           earlier == nullptr ? 0.0f : earlier[k]);
    }
}

// The largest piece that a row's bytes, and the addresses of all rows, are whole numbers of.
template <bool scattering>
void move_batch(cudaStream_t stream, const Addresses& addresses, size_t count, const Places& places, int64_t heads,
                size_t bytes) {
    size_t piece = bytes % 16 == 0 ? 16 : bytes % 4 == 0 ? 4 : 2;
    auto pieces = static_cast<int64_t>(bytes / piece);
    dim3 grid = blocks(static_cast<size_t>(places.count * pieces));
    grid.y = static_cast<unsigned>(places.rows * heads), grid.z = static_cast<unsigned>(count);
    auto* kernel = piece == 16  ? move_rows<uint4, scattering>
                   : piece == 4 ? move_rows<unsigned, scattering>
                                : move_rows<unsigned short, scattering>;
    launch(kernel, grid, dim3(small_block), stream, addresses, places, heads, pieces);
}

// Tensors of one shape go together, as many as a launch takes.
template <typename One, typename Alike, typename Work>
void in_batches(const One* all, size_t count, Alike alike, Work work) {
    for (size_t first = 0; first < count;) {
        size_t last = first + 1;
        while (last < count && last - first < batch && alike(all[first], all[last])) ++last;
        work(all + first, last - first);
        first = last;
    }
}

template <bool scattering>
void move_all(cudaStream_t stream, const Moved* moved, size_t count, const Places& places) {
    if (places.count == 0) return;
    auto alike = [](const Moved& a, const Moved& b) { return a.heads == b.heads && a.bytes == b.bytes; };
    in_batches(moved, count, alike, [&](const Moved* first, size_t own) {
        Addresses addresses = {};
        for (size_t k = 0; k < own; ++k) {
            addresses.from[k] = first[k].from;
            addresses.to[k] = first[k].to;
            addresses.kept[k] = first[k].kept;
        }
        move_batch<scattering>(stream, addresses, own, places, first->heads, first->bytes);
    });
}

}  // namespace

void fill(void* device, float* to, size_t count, float number) {
    if (count > 0) launch(fill_numbers, blocks(count), dim3(small_block), stream_of(device), to, count, number);
}

void convert(void* device, void* to, Type to_type, const void* from, Type from_type, size_t count) {
    if (count > 0)
        launch(convert_numbers, blocks(count), dim3(small_block), stream_of(device), to, to_type, from, from_type,
               count);
}

void choose(void* device, const float* score, int64_t images, int64_t tokens, int64_t n, int64_t copies, int64_t* focus,
            int64_t* background) {
    launch_together(choose_tokens, dim3(static_cast<unsigned>(images)), dim3(choosing), stream_of(device), score,
                    images, static_cast<int>(tokens), static_cast<int>(n), copies, focus, background);
}

void mark(void* device, float* marks, Places places) {
    fill(device, marks, static_cast<size_t>(places.rows * places.tokens), 0.0f);
    auto count = static_cast<size_t>(places.rows * places.count);
    if (count > 0) launch(mark_places, blocks(count), dim3(small_block), stream_of(device), marks, places);
}

void gather(void* device, const Moved* moved, size_t count, Places places) {
    move_all<false>(stream_of(device), moved, count, places);
}

void scatter(void* device, const Moved* moved, size_t count, Places places) {
    move_all<true>(stream_of(device), moved, count, places);
}

void carry(void* device, const Carried* carried, size_t count, Places places, const float* distance) {
    if (places.count == 0) return;
    auto alike = [](const Carried& a, const Carried& b) {
        return a.heads == b.heads && a.width == b.width && a.type == b.type;
    };
    in_batches(carried, count, alike, [&](const Carried* first, size_t own) {
        Addresses addresses = {};
        for (size_t k = 0; k < own; ++k) {
            addresses.from[k] = first[k].last;
            addresses.to[k] = first[k].to;
            addresses.kept[k] = const_cast<void*>(first[k].before);
        }
        dim3 grid = blocks(static_cast<size_t>(places.count * first->width));
        grid.y = static_cast<unsigned>(places.rows * first->heads), grid.z = static_cast<unsigned>(own);
        launch(carry_rows, grid, dim3(small_block), stream_of(device), addresses, places, first->heads, first->width,
               first->type, distance);
    });
}

void unpatchify(void* device, Patches patches, const float* tokens, float* latents) {
    auto count = static_cast<size_t>(patches.images * patches.tokens * patches.token_width());
    if (count > 0)
        launch(unpatchify_numbers, blocks(count), dim3(small_block), stream_of(device), patches, tokens, latents);
}

void move(void* device, Move by, const float* prediction, float* latents, float* sample, const float* earlier,
          size_t count) {
    if (count > 0)
        launch(move_numbers, blocks(count), dim3(small_block), stream_of(device), by, prediction, latents, sample,
               earlier, count);
}

}  // namespace accelaes::cuda
