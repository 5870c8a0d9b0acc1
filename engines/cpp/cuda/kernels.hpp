// The mechanisms as CUDA kernels. Nothing here allocates or waits: work is queued on a stream.
#pragma once

#include <cuda_runtime.h>

#include "mechanisms.hpp"

namespace accelaes::cuda {

void fill(cudaStream_t stream, float* to, size_t count, float number);
void convert(cudaStream_t stream, void* to, Type to_type, const void* from, Type from_type, size_t count);
void choose(cudaStream_t stream, const float* score, int64_t images, int64_t tokens, int64_t n, int64_t copies,
            int64_t* focus, int64_t* background);
void mark(cudaStream_t stream, float* marks, Places places);
void gather(cudaStream_t stream, const Moved* moved, size_t count, Places places);
void scatter(cudaStream_t stream, const Moved* moved, size_t count, Places places);
void carry(cudaStream_t stream, const Carried* carried, size_t count, Places places, const float* distance);
void unpatchify(cudaStream_t stream, Patches patches, const float* tokens, float* latents);
void move(cudaStream_t stream, Move by, const float* prediction, float* latents, float* sample, const float* earlier,
          size_t count);

}  // namespace accelaes::cuda
