#include "launch.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <utility>

namespace accelaes {
namespace {

constexpr std::int64_t kSmallestTile = 64;      // query rows
constexpr std::int64_t kLargestScratch = 1024;  // bytes a program: eight tensor descriptors
constexpr unsigned kWithoutAsking = 48 * 1024;  // shared memory that every program may have

// Functions of libcuda, so that loading this library needs no driver.
struct Driver {
    decltype(&::cuInit) init = nullptr;
    decltype(&::cuCtxGetCurrent) contextCurrent = nullptr;
    decltype(&::cuCtxGetDevice) contextDevice = nullptr;
    decltype(&::cuDeviceGet) device = nullptr;
    decltype(&::cuDeviceGetAttribute) attribute = nullptr;
    decltype(&::cuModuleLoadData) load = nullptr;
    decltype(&::cuModuleGetFunction) function = nullptr;
    decltype(&::cuFuncSetAttribute) setAttribute = nullptr;
    decltype(&::cuLaunchKernel) launch = nullptr;
    decltype(&::cuGetErrorString) errorString = nullptr;
    bool ready = false;

    Driver() {
        void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
        if (library == nullptr) {
            return;
        }
        auto const find = [library](char const* name, auto& target) {
            target = reinterpret_cast<std::decay_t<decltype(target)>>(dlsym(library, name));
            return target != nullptr;
        };
        ready = find("cuInit", init) && find("cuCtxGetCurrent", contextCurrent) && find("cuCtxGetDevice", contextDevice)
            && find("cuDeviceGet", device) && find("cuDeviceGetAttribute", attribute) && find("cuModuleLoadData", load)
            && find("cuModuleGetFunction", function) && find("cuFuncSetAttribute", setAttribute)
            && find("cuLaunchKernel", launch) && find("cuGetErrorString", errorString) && init(0) == CUDA_SUCCESS;
    }
};

Driver const& driver() {
    static Driver const found;
    return found;
}

std::string failed(char const* what, CUresult code) {
    char const* text = nullptr;
    driver().errorString(code, &text);
    return std::string(what) + " failed: " + (text == nullptr ? "unknown CUDA error" : text);
}

// Kernels stay loaded as long as their context lives; contexts end with the process.
std::string loaded(Row const& row, CUfunction& function) {
    static std::mutex mutex;
    static std::map<std::pair<CUcontext, Row const*>, CUfunction> functions;
    CUcontext context = nullptr;
    if (auto const code = driver().contextCurrent(&context); code != CUDA_SUCCESS) {
        return failed("cuCtxGetCurrent", code);
    }
    std::lock_guard<std::mutex> const guard(mutex);
    auto const known = functions.find({context, &row});
    if (known != functions.end()) {
        function = known->second;
        return {};
    }
    CUmodule module = nullptr;
    if (auto const code = driver().load(&module, image(row)); code != CUDA_SUCCESS) {
        return failed("cuModuleLoadData", code);
    }
    if (auto const code = driver().function(&function, module, "attention"); code != CUDA_SUCCESS) {
        return failed("cuModuleGetFunction", code);
    }
    if (row.shared > kWithoutAsking) {
        auto const code = driver().setAttribute(
            function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(row.shared));
        if (code != CUDA_SUCCESS) {
            return failed("cuFuncSetAttribute", code);
        }
    }
    functions[{context, &row}] = function;
    return {};
}

}  // namespace

std::size_t scratchBytes(std::int64_t batch, std::int64_t heads, std::int64_t queries) noexcept {
    auto const tiles = (queries + kSmallestTile - 1) / kSmallestTile;
    return static_cast<std::size_t>(tiles * heads * batch * kLargestScratch);
}

std::vector<Row const*> candidatesHere(Kind const& kind) {
    if (!driver().ready) {
        return {};
    }
    CUdevice device = 0;
    CUcontext context = nullptr;
    driver().contextCurrent(&context);
    auto const found = context == nullptr ? driver().device(&device, 0) : driver().contextDevice(&device);
    int major = 0;
    int minor = 0;
    if (found != CUDA_SUCCESS
        || driver().attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device) != CUDA_SUCCESS
        || driver().attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device) != CUDA_SUCCESS) {
        return {};
    }
    return candidates(major, minor, kind);
}

std::string launch(Row const& row, Sizes const& sizes, float scale, std::array<void const*, 7> const& pointers,
    void* scratch, CUstream stream) {
    if (sizes.batch * sizes.heads * sizes.queries == 0) {
        return {};
    }
    CUfunction function = nullptr;
    if (auto problem = loaded(row, function); !problem.empty()) {
        return problem;
    }
    auto const hd = sizes.headDim;
    auto q = pointers[0], k = pointers[1], v = pointers[2], kb = pointers[3], vb = pointers[4];
    auto bias = pointers[5], out = pointers[6];
    auto queries = static_cast<std::int32_t>(sizes.queries);
    auto keys = static_cast<std::int32_t>(sizes.keys);
    auto background = static_cast<std::int32_t>(sizes.background);
    auto group = static_cast<std::int32_t>(sizes.heads / sizes.kvHeads);
    std::int64_t qHead = sizes.queries * hd, qBatch = sizes.heads * qHead;
    std::int64_t kHead = sizes.keys * hd, kBatch = sizes.kvHeads * kHead;
    std::int64_t kbHead = sizes.background * hd, kbBatch = sizes.kvHeads * kbHead;
    std::int64_t const columns = sizes.keys + sizes.background;
    std::int64_t biasBatch = sizes.biasRows == 1 ? 0 : sizes.biasLines * columns;
    std::int64_t biasRow = sizes.biasLines == 1 ? 0 : columns;
    void* profile = nullptr;
    // In the order of launching.py's PARAMETERS.
    void* parameters[] = {&q, &k, &v, &kb, &vb, &bias, &out, &scale, &queries, &keys, &background, &group,  //
        &qBatch, &qHead, &kBatch, &kHead, &kBatch, &kHead, &kbBatch, &kbHead, &kbBatch, &kbHead, &qBatch, &qHead,
        &biasBatch, &biasRow, &scratch, &profile};
    auto const tiles = static_cast<unsigned>((sizes.queries + row.queries() - 1) / row.queries());
    auto const code = driver().launch(function, tiles, static_cast<unsigned>(sizes.heads),
        static_cast<unsigned>(sizes.batch), 32 * row.warps(), 1, 1, row.shared, stream, parameters, nullptr);
    return code == CUDA_SUCCESS ? std::string() : failed("cuLaunchKernel", code);
}

}  // namespace accelaes
