// libtorch by its C interface, on the device that a bundle was opened for.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "engine.hpp"

namespace aoti {

// torch/csrc/inductor/aoti_torch/c/shim.h and aoti_runtime/interface.h, which keep these as they are.
using Code = int32_t;
struct AtenTensor;
struct StreamGuard;

// A function of a library; refused where it isn't there.
void* symbol(void* library, const char* name);

template <typename Function>
void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(symbol(library, name));
}

class Torch {
   public:
    // `cuda`: libtorch_cuda, or null where the device is the host.
    Torch(void* library, void* cuda, const accelaes::EngineDevice& device);

    bool on_host() const { return !create_guard_; }
    const accelaes::EngineDevice& device() const { return device_; }
    void* stream() const { return on_host() ? nullptr : device_.functions->stream(device_.context); }

    // A contiguous tensor that lies where `place` is, of a dtype as safetensors calls it.
    AtenTensor* view(void* place, const std::string& dtype, const int64_t* shape, size_t axes, bool on_host) const;
    AtenTensor* view(const accelaes::Tensor& tensor) const;
    // The same; on the device, wherever it is.
    AtenTensor* given(const accelaes::Tensor& tensor) const;
    // Whether it has the shape that was asked for; then it is copied there.
    bool fetch(AtenTensor* tensor, const accelaes::Tensor& wanted) const;
    void release(AtenTensor* tensor) const { release_(tensor); }

   private:
    friend class Turn;
    bool has_shape(AtenTensor* tensor, const accelaes::Tensor& wanted) const;
    int32_t dtype_of(const std::string& name) const;

    accelaes::EngineDevice device_;
    Code (*from_blob_)(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t, AtenTensor**,
                       int32_t, const uint8_t*, int64_t) = nullptr;
    Code (*empty_)(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, AtenTensor**) = nullptr;
    Code (*copy_)(AtenTensor*, AtenTensor*, int32_t) = nullptr;
    Code (*release_)(AtenTensor*) = nullptr;
    Code (*data_)(AtenTensor*, void**) = nullptr;
    Code (*rank_)(AtenTensor*, int64_t*) = nullptr;
    Code (*sizes_)(AtenTensor*, int64_t**) = nullptr;
    Code (*strides_)(AtenTensor*, int64_t**) = nullptr;
    Code (*set_grad_)(bool) = nullptr;
    bool (*has_grad_)() = nullptr;
    Code (*create_guard_)(void*, int32_t, StreamGuard**) = nullptr;
    Code (*delete_guard_)(StreamGuard*) = nullptr;
    int32_t host_ = 0, cuda_ = 0, strided_ = 0;
    std::map<std::string, int32_t> dtypes_;
};

// While it lives, the thread's gradients are off (it may be one that trains, in a process that has torch too), and on a
// GPU torch's work is queued on the bundle's stream.
class Turn {
   public:
    explicit Turn(const Torch& torch);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    const Torch& torch_;
    bool had_grad_;
    StreamGuard* guard_ = nullptr;
};

}  // namespace aoti
