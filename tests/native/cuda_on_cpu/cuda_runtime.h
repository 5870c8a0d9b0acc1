// CUDA's runtime, as much of it as libaccelaes calls, on a CPU: kernels run thread by thread, in an order of chance
// where they wait for each other, and the device's memory can't be touched but by kernels and copies. For tests without
// a GPU.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(threads)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned of_x = 1, unsigned of_y = 1, unsigned of_z = 1) : x(of_x), y(of_y), z(of_z) {}
};
struct uint4 {
    unsigned x, y, z, w;
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaStreamNonBlocking };

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

// All of the device's memory, closed to everybody but for the time that somebody works on it.
class Memory {
   public:
    static Memory& all() {
        static Memory memory;
        return memory;
    }
    void* allocate(size_t bytes) {
        bytes = (bytes + 255) / 256 * 256;
        if (used_ + bytes > size) return nullptr;
        void* made = base_ + used_;
        used_ += bytes, ++count_;
        return made;
    }
    void release(void* data) {
        if (data != nullptr && --count_ == 0) used_ = 0;
    }
    void open() {
        if (opened_++ == 0) mprotect(base_, size, PROT_READ | PROT_WRITE);
    }
    void close() {
        if (--opened_ == 0) mprotect(base_, size, PROT_NONE);
    }

   private:
    static constexpr size_t size = size_t{1} << 30;
    Memory()
        : base_(
              static_cast<char*>(mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {}

    char* base_;
    size_t used_ = 0, count_ = 0;
    int opened_ = 0;
};

struct Opened {
    Opened() { Memory::all().open(); }
    ~Opened() { Memory::all().close(); }
};

// The threads of a block that wait for each other.
class Block {
   public:
    enum class State { runs, waits_for_warp, waits_for_block, done };

    static Block*& current() {
        static Block* block = nullptr;
        return block;
    }
    Block(unsigned threads, const std::function<void()>& kernel)
        : kernel_(kernel), contexts_(threads), states_(threads, State::runs), shown_(threads), order_(threads) {
        std::iota(order_.begin(), order_.end(), 0u);
        constexpr size_t stack = 64 << 10;
        stacks_.reset(new char[stack * threads]);
        for (unsigned k = 0; k < threads; ++k) {
            getcontext(&contexts_[k]);
            contexts_[k].uc_stack.ss_sp = stacks_.get() + stack * k;
            contexts_[k].uc_stack.ss_size = stack;
            contexts_[k].uc_link = &scheduler_;
            makecontext(&contexts_[k], reinterpret_cast<void (*)()>(begin), 0);
        }
    }
    void run() {
        current() = this;
        std::mt19937 chance(7);
        while (!std::all_of(states_.begin(), states_.end(), [](State state) { return state == State::done; })) {
            std::shuffle(order_.begin(), order_.end(), chance);
            for (unsigned k : order_) {
                if (states_[k] != State::runs) continue;
                now_ = k;
                threadIdx = dim3(k);
                swapcontext(&scheduler_, &contexts_[k]);
            }
            for (size_t warp = 0; warp < states_.size(); warp += 32) release(warp, warp + 32, State::waits_for_warp);
            release(0, states_.size(), State::waits_for_block);
        }
        current() = nullptr;
    }
    void wait(State state) {
        unsigned me = now_;
        states_[me] = state;
        swapcontext(&contexts_[me], &scheduler_);
    }
    // What the lane `distance` below shows.
    unsigned long long up(unsigned long long own, unsigned distance) {
        unsigned me = now_;
        shown_[me] = own;
        wait(State::waits_for_warp);
        unsigned long long found = (me & 31u) >= distance ? shown_[me - distance] : own;
        wait(State::waits_for_warp);
        return found;
    }

   private:
    static void begin() {
        Block& block = *current();
        block.kernel_();
        block.states_[block.now_] = State::done;
    }
    // All of them go on once all of them wait.
    void release(size_t first, size_t last, State state) {
        last = std::min(last, states_.size());
        for (size_t k = first; k < last; ++k) {
            if (states_[k] != state && states_[k] != State::done) return;
        }
        for (size_t k = first; k < last; ++k) {
            if (states_[k] == state) states_[k] = State::runs;
        }
    }

    const std::function<void()>& kernel_;
    ucontext_t scheduler_;
    std::vector<ucontext_t> contexts_;
    std::vector<State> states_;
    std::vector<unsigned long long> shown_;
    std::vector<unsigned> order_;
    std::unique_ptr<char[]> stacks_;
    unsigned now_ = 0;
};

template <typename Work>
void over(dim3 grid, Work work) {
    Opened opened;
    gridDim = grid;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) work();
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::Block::current()->wait(cuda_on_cpu::Block::State::waits_for_block); }
inline unsigned long long __shfl_up_sync(unsigned, unsigned long long own, unsigned distance) {
    return cuda_on_cpu::Block::current()->up(own, distance);
}
inline unsigned atomicAdd(unsigned* to, unsigned number) { return *to += number, *to - number; }

namespace accelaes::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t, Arguments... arguments) {
    blockDim = block;
    cuda_on_cpu::over(grid, [&] {
        for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) kernel(static_cast<Parameters>(arguments)...);
    });
}

template <typename... Parameters, typename... Arguments>
void launch_together(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t, Arguments... arguments) {
    blockDim = block;
    std::function<void()> run = [&] { kernel(static_cast<Parameters>(arguments)...); };
    cuda_on_cpu::over(grid, [&] { cuda_on_cpu::Block(block.x, run).run(); });
}

}  // namespace accelaes::cuda

inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, int) { return *stream = &threadIdx, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** data, size_t bytes) {
    *data = cuda_on_cpu::Memory::all().allocate(bytes);
    return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaFree(void* data) { return cuda_on_cpu::Memory::all().release(data), cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* data, int byte, size_t bytes, cudaStream_t) {
    cuda_on_cpu::Opened opened;
    std::memset(data, byte, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    cuda_on_cpu::Opened opened;
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}
