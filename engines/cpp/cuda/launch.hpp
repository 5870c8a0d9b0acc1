// Queues a kernel on a stream. Where kernels are tested without a GPU, cuda_runtime.h brings these itself.
#pragma once

#include <cuda_runtime.h>

#ifdef __CUDACC__
namespace accelaes::cuda {

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream, Arguments... arguments) {
    kernel<<<grid, block, 0, stream>>>(static_cast<Parameters>(arguments)...);
}

// Of threads that wait for each other.
template <typename... Parameters, typename... Arguments>
void launch_together(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                     Arguments... arguments) {
    launch(kernel, grid, block, stream, arguments...);
}

}  // namespace accelaes::cuda
#endif
