// CUDA as a device of libaccelaes: memory, and the mechanisms on a stream.
#include <cstdio>
#include <memory>
#include <string>

#include "accelaes.h"
#include "kernels.hpp"

namespace {

using accelaes::DeviceFunctions;
using accelaes::EngineError;

struct Device {
    int index;
    cudaStream_t stream;
    bool own;
};

// The device, made the calling thread's.
Device& entered(void* device) {
    auto& found = *static_cast<Device*>(device);
    cudaSetDevice(found.index);
    return found;
}

bool said(EngineError* error, int code, const std::string& sentence) {
    error->code = code;
    std::snprintf(error->sentence, sizeof error->sentence, "%s", sentence.c_str());
    return false;
}

bool good(cudaError_t found, EngineError* error) {
    if (found == cudaSuccess) found = cudaGetLastError();
    return found == cudaSuccess || said(error, ACCELAES_FAILED, std::string("CUDA says: ") + cudaGetErrorString(found));
}

void* open(int index, void* stream, EngineError* error) {
    int count = 0;
    cudaError_t found = cudaGetDeviceCount(&count);
    if (found != cudaSuccess || count == 0) {
        std::string why = found == cudaSuccess ? "" : std::string(" (") + cudaGetErrorString(found) + ")";
        said(error, ACCELAES_MISSING,
             "options.device is cuda, and this machine has no CUDA device that can be used" + why +
                 "; install NVIDIA's driver, or take cpu");
        return nullptr;
    }
    if (index >= count) {
        said(error, ACCELAES_INPUT,
             "options.device is cuda:" + std::to_string(index) +
                 ", and this machine has cuda:0 to cuda:" + std::to_string(count - 1) + "; take one of them");
        return nullptr;
    }
    auto made = std::make_unique<Device>(Device{index, static_cast<cudaStream_t>(stream), stream == nullptr});
    found = cudaSetDevice(index);
    if (found == cudaSuccess && made->own) found = cudaStreamCreateWithFlags(&made->stream, cudaStreamNonBlocking);
    return good(found, error) ? made.release() : nullptr;
}

void close(void* device) {
    Device& own = entered(device);
    if (own.own) cudaStreamDestroy(own.stream);
    delete &own;
}

void* stream(void* device) { return accelaes::cuda::stream_of(device); }

void* allocate(void* device, size_t bytes) {
    Device& own = entered(device);
    void* made = nullptr;
    size_t some = bytes == 0 ? 1 : bytes;
    if (cudaMalloc(&made, some) != cudaSuccess) {
        cudaGetLastError();  // it is told by its null
        return nullptr;
    }
    cudaMemsetAsync(made, 0, some, own.stream);
    return made;
}

void release(void* device, void* data) {
    entered(device);
    cudaFree(data);
}

void write(void* device, void* to, const void* from, size_t bytes) {
    if (bytes > 0) cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, entered(device).stream);
}

bool wait(void* device, EngineError* error) { return good(cudaStreamSynchronize(entered(device).stream), error); }

bool read(void* device, void* to, const void* from, size_t bytes, EngineError* error) {
    if (bytes > 0) cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, entered(device).stream);
    return wait(device, error);
}

void copy(void* device, void* to, const void* from, size_t bytes) {
    if (bytes > 0) cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, entered(device).stream);
}

const DeviceFunctions functions = {accelaes::device_version,
                                   "cuda",
                                   open,
                                   close,
                                   stream,
                                   allocate,
                                   release,
                                   write,
                                   read,
                                   wait,
                                   copy,
                                   accelaes::cuda::fill,
                                   accelaes::cuda::convert,
                                   accelaes::cuda::choose,
                                   accelaes::cuda::mark,
                                   accelaes::cuda::gather,
                                   accelaes::cuda::scatter,
                                   accelaes::cuda::carry,
                                   accelaes::cuda::unpatchify,
                                   accelaes::cuda::move};

}  // namespace

cudaStream_t accelaes::cuda::stream_of(void* device) { return entered(device).stream; }

extern "C" ACCELAES_API const DeviceFunctions* accelaes_device() { return &functions; }
