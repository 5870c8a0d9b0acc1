// The compiled kernels inside this library: the pack that accelaes-export plugin build writes (cubins.py).
#pragma once

#include <cstdint>
#include <vector>

namespace accelaes {

// One row of the pack's table; little endian, as all machines with these GPUs are.
struct Row {
    std::uint32_t architecture;  // 86 for sm_86
    std::uint32_t dtype;         // 0 fp16, 1 bf16
    std::uint32_t headDim;
    std::uint32_t biased;
    std::uint32_t tile;  // its code, also a tactic's number
    std::uint32_t best;  // the tile table's choice for this architecture and head size
    std::uint32_t shared;
    std::uint32_t scratch;
    std::uint64_t offset;
    std::uint64_t size;

    // tiles.py: log2 of query rows, keys and warps, stages, descriptors; four bits each.
    std::uint32_t queries() const noexcept { return 1U << (tile >> 16 & 15U); }
    std::uint32_t warps() const noexcept { return 1U << (tile >> 8 & 15U); }
};
static_assert(sizeof(Row) == 48, "the pack's rows have 48 bytes");

// What a kernel is chosen by, beside the GPU.
struct Kind {
    std::uint32_t dtype;
    std::uint32_t headDim;
    std::uint32_t biased;
};

// Kernels that run on a GPU of compute capability major.minor, the table's choice first.
std::vector<Row const*> candidates(int major, int minor, Kind const& kind);

// A kernel's machine code.
void const* image(Row const& row) noexcept;

}  // namespace accelaes
