#include "aoti/torch.hpp"

#include <dlfcn.h>

#include <cstring>
#include <vector>

#include "format.hpp"

namespace aoti {

using accelaes::Refused;
using accelaes::Tensor;
using accelaes::Type;

namespace {

const char* safetensors_name(Type type) {
    switch (type) {
        case Type::i64: return "I64";
        case Type::f16: return "F16";
        case Type::bf16: return "BF16";
        default: return "F32";
    }
}

std::vector<int64_t> contiguous(const int64_t* shape, size_t axes) {
    std::vector<int64_t> steps(axes);
    int64_t step = 1;
    for (size_t axis = axes; axis-- > 0; step *= shape[axis]) steps[axis] = step;
    return steps;
}

// A view's numbers, one behind another. Outputs may be views: keys and values come transposed.
void copy(const char* from, char*& to, const int64_t* sizes, const int64_t* steps, int64_t axes, size_t width) {
    if (axes == 0 || (axes == 1 && steps[0] == 1)) {
        size_t bytes = width * static_cast<size_t>(axes == 0 ? 1 : sizes[0]);
        std::memcpy(to, from, bytes);
        to += bytes;
        return;
    }
    for (int64_t k = 0; k < sizes[0]; ++k)
        copy(from + k * steps[0] * static_cast<int64_t>(width), to, sizes + 1, steps + 1, axes - 1, width);
}

}  // namespace

void* symbol(void* library, const char* name) {
    void* found = dlsym(library, name);
    if (found == nullptr)
        throw Refused{ACCELAES_MISSING,
                      std::string("There is no ") + name + " in it; install the torch it was built with"};
    return found;
}

Torch::Torch(void* library, void* cuda, const accelaes::EngineDevice& device) : device_(device) {
    find(library, "aoti_torch_create_tensor_from_blob_v2", from_blob_);
    find(library, "aoti_torch_empty_strided", empty_);
    find(library, "aoti_torch_copy_", copy_);
    find(library, "aoti_torch_delete_tensor_object", release_);
    find(library, "aoti_torch_get_data_ptr", data_);
    find(library, "aoti_torch_get_dim", rank_);
    find(library, "aoti_torch_get_sizes", sizes_);
    find(library, "aoti_torch_get_strides", strides_);
    find(library, "aoti_torch_grad_mode_set_enabled", set_grad_);
    find(library, "aoti_torch_grad_mode_is_enabled", has_grad_);
    if (cuda != nullptr) {
        find(cuda, "aoti_torch_create_cuda_stream_guard", create_guard_);
        find(cuda, "aoti_torch_delete_cuda_stream_guard", delete_guard_);
    }
    auto number = [&](const char* name) {
        int32_t (*function)() = nullptr;
        find(library, name, function);
        return function();
    };
    host_ = number("aoti_torch_device_type_cpu");
    cuda_ = number("aoti_torch_device_type_cuda");
    strided_ = number("aoti_torch_layout_strided");
    dtypes_ = {{"F32", number("aoti_torch_dtype_float32")},
               {"I64", number("aoti_torch_dtype_int64")},
               {"F16", number("aoti_torch_dtype_float16")},
               {"BF16", number("aoti_torch_dtype_bfloat16")},
               {"BOOL", number("aoti_torch_dtype_bool")}};
}

int32_t Torch::dtype_of(const std::string& name) const {
    auto known = dtypes_.find(name);
    if (known == dtypes_.end()) throw Refused{ACCELAES_FAILED, "torch makes no tensor of " + name};
    return known->second;
}

AtenTensor* Torch::view(void* place, const std::string& dtype, const int64_t* shape, size_t axes, bool is_here) const {
    static char nothing[16];
    auto steps = contiguous(shape, axes);
    AtenTensor* made = nullptr;
    if (from_blob_(place == nullptr ? nothing : place, static_cast<int64_t>(axes), shape, steps.data(), 0,
                   dtype_of(dtype), is_here ? host_ : cuda_, is_here ? 0 : device_.index, &made, strided_, nullptr,
                   0) != 0)
        throw Refused{ACCELAES_FAILED, "torch makes no tensor of an input"};
    return made;
}

AtenTensor* Torch::view(const Tensor& tensor) const {
    return view(tensor.data, safetensors_name(tensor.type), tensor.shape, static_cast<size_t>(tensor.rank),
                tensor.on_host || on_host());
}

AtenTensor* Torch::given(const Tensor& tensor) const {
    AtenTensor* own = view(tensor);
    if (on_host() || !tensor.on_host) return own;
    auto axes = static_cast<size_t>(tensor.rank);
    auto steps = contiguous(tensor.shape, axes);
    AtenTensor* made = nullptr;
    bool copied = empty_(tensor.rank, tensor.shape, steps.data(), dtype_of(safetensors_name(tensor.type)), cuda_,
                         device_.index, &made) == 0 &&
                  copy_(made, own, 0) == 0;
    release_(own);
    if (copied) return made;
    if (made != nullptr) release_(made);
    throw Refused{ACCELAES_FAILED, "torch can't copy an input to the GPU"};
}

bool Torch::has_shape(AtenTensor* tensor, const Tensor& wanted) const {
    int64_t rank = 0, *sizes = nullptr;
    rank_(tensor, &rank);
    sizes_(tensor, &sizes);
    if (rank != wanted.rank) return false;
    for (int64_t axis = 0; axis < rank; ++axis) {
        if (sizes[axis] != wanted.shape[axis]) return false;
    }
    return true;
}

bool Torch::fetch(AtenTensor* tensor, const Tensor& wanted) const {
    if (!has_shape(tensor, wanted)) return false;
    for (int axis = 0; axis < wanted.rank; ++axis) {
        if (wanted.shape[axis] == 0) return true;
    }
    if (!on_host()) {
        AtenTensor* to = view(wanted);
        bool copied = copy_(to, tensor, wanted.on_host ? 0 : 1) == 0;
        release_(to);
        if (!copied) throw Refused{ACCELAES_FAILED, "torch can't copy an output from the GPU"};
        return true;
    }
    void* data = nullptr;
    int64_t* steps = nullptr;
    data_(tensor, &data);
    strides_(tensor, &steps);
    char* to = static_cast<char*>(wanted.data);
    copy(static_cast<const char*>(data), to, wanted.shape, steps, wanted.rank, accelaes::width_of(wanted.type));
    return true;
}

Turn::Turn(const Torch& torch) : torch_(torch), had_grad_(torch.has_grad_()) {
    torch_.set_grad_(false);
    if (!torch.on_host()) torch.create_guard_(torch.stream(), torch.device().index, &guard_);
}

Turn::~Turn() {
    if (guard_ != nullptr) torch_.delete_guard_(guard_);
    torch_.set_grad_(had_grad_);
}

}  // namespace aoti
