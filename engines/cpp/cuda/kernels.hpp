// The mechanisms as CUDA kernels, for the table of functions. Nothing here allocates or waits: work is queued on the
// device's stream.
#pragma once

#include <cuda_runtime.h>

#include "mechanisms.hpp"

namespace accelaes::cuda {

// The stream of a device, which becomes the calling thread's.
cudaStream_t stream_of(void* device);

void fill(void* device, float* to, size_t count, float number);
void convert(void* device, void* to, Type to_type, const void* from, Type from_type, size_t count);
void choose(void* device, const float* score, int64_t images, int64_t tokens, int64_t n, int64_t copies, int64_t* focus,
            int64_t* background);
void mark(void* device, float* marks, Places places);
void gather(void* device, const Moved* moved, size_t count, Places places);
void scatter(void* device, const Moved* moved, size_t count, Places places);
void carry(void* device, const Carried* carried, size_t count, Places places, const float* distance);
void unpatchify(void* device, Patches patches, const float* tokens, float* latents);
void move(void* device, Move by, const float* prediction, float* latents, float* sample, const float* earlier,
          size_t count);

}  // namespace accelaes::cuda
