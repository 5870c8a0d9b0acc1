// One call of a compiled kernel through the CUDA driver, which is looked up when it is first needed (launching.py).
#pragma once

#include "cubins.h"

#include <cuda.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace accelaes {

// Of contiguous tensors; biasRows and biasLines are 1 where the bias is the same for all batch rows or queries.
struct Sizes {
    std::int64_t batch, heads, kvHeads, queries, keys, background, headDim;
    std::int64_t biasRows, biasLines;
};

// Scratch memory that is enough for every tile of the table.
std::size_t scratchBytes(std::int64_t batch, std::int64_t heads, std::int64_t queries) noexcept;

// Kernels for the current GPU, the table's choice first; none where there is no driver or no GPU.
std::vector<Row const*> candidatesHere(Kind const& kind);

// Enqueue one call. pointers: q, k, v, k_bg, v_bg, bias (or null), out. Returns what went wrong, or an empty string.
std::string launch(Row const& row, Sizes const& sizes, float scale, std::array<void const*, 7> const& pointers,
    void* scratch, CUstream stream);

}  // namespace accelaes
