// AOTInductor as an engine format: a package's library and the user's libtorch_cpu, both opened by their C interface.
#include <dlfcn.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "aoti/package.hpp"
#include "aoti/weights.hpp"
#include "format.hpp"

namespace {

using accelaes::EngineDevice;
using accelaes::EngineError;
using accelaes::GraphFiles;
using accelaes::guarded;
using accelaes::Refused;
using accelaes::Tensor;

// torch/csrc/inductor/aoti_torch/c/shim.h and aoti_runtime/interface.h, which keep these as they are.
using Code = int32_t;
struct AtenTensor;
struct ModelContainer;
struct ConstantPair {
    const char* name;
    AtenTensor* tensor;
};

template <typename Function>
void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr)
        throw Refused{ACCELAES_MISSING,
                      std::string("There is no ") + name + " in it; install the torch it was built with"};
}

struct Torch {
    Code (*from_blob)(void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t, AtenTensor**,
                      int32_t, const uint8_t*, int64_t) = nullptr;
    Code (*release)(AtenTensor*) = nullptr;
    Code (*data)(AtenTensor*, void**) = nullptr;
    Code (*rank)(AtenTensor*, int64_t*) = nullptr;
    Code (*sizes)(AtenTensor*, int64_t**) = nullptr;
    Code (*strides)(AtenTensor*, int64_t**) = nullptr;
    Code (*set_grad)(bool) = nullptr;
    bool (*has_grad)() = nullptr;
    int32_t cpu = 0, strided = 0;
    std::map<std::string, int32_t> dtypes;  // as safetensors calls them

    explicit Torch(void* library) {
        find(library, "aoti_torch_create_tensor_from_blob_v2", from_blob);
        find(library, "aoti_torch_delete_tensor_object", release);
        find(library, "aoti_torch_get_data_ptr", data);
        find(library, "aoti_torch_get_dim", rank);
        find(library, "aoti_torch_get_sizes", sizes);
        find(library, "aoti_torch_get_strides", strides);
        find(library, "aoti_torch_grad_mode_set_enabled", set_grad);
        find(library, "aoti_torch_grad_mode_is_enabled", has_grad);
        auto number = [&](const char* name) {
            int32_t (*function)() = nullptr;
            find(library, name, function);
            return function();
        };
        cpu = number("aoti_torch_device_type_cpu");
        strided = number("aoti_torch_layout_strided");
        dtypes = {{"F32", number("aoti_torch_dtype_float32")},
                  {"I64", number("aoti_torch_dtype_int64")},
                  {"F16", number("aoti_torch_dtype_float16")},
                  {"BF16", number("aoti_torch_dtype_bfloat16")},
                  {"BOOL", number("aoti_torch_dtype_bool")}};
    }

    // A contiguous tensor that lies where `place` is.
    AtenTensor* view(void* place, const std::string& dtype, const int64_t* shape, size_t axes) const {
        static char nothing[16];
        std::vector<int64_t> steps(axes);
        int64_t step = 1;
        for (size_t axis = axes; axis-- > 0; step *= shape[axis]) steps[axis] = step;
        AtenTensor* made = nullptr;
        void* data_of = place == nullptr ? nothing : place;
        auto known = dtypes.find(dtype);
        bool failed = known == dtypes.end() || from_blob(data_of, static_cast<int64_t>(axes), shape, steps.data(), 0,
                                                         known->second, cpu, 0, &made, strided, nullptr, 0) != 0;
        if (failed) throw Refused{ACCELAES_FAILED, "torch makes no tensor of an input"};
        return made;
    }
};

const char* safetensors_name(accelaes::Type type) {
    switch (type) {
        case accelaes::Type::i64: return "I64";
        case accelaes::Type::f16: return "F16";
        case accelaes::Type::bf16: return "BF16";
        default: return "F32";
    }
}

// "2.13.0+cpu" as libtorch numbers itself: major and minor in the two highest bytes.
uint64_t abi_of(const std::string& version) {
    unsigned major = 0, minor = 0;
    std::sscanf(version.c_str(), "%u.%u", &major, &minor);
    return static_cast<uint64_t>(major) << 56 | static_cast<uint64_t>(minor) << 48;
}

void check_torch(void* library, const std::string& built) {
    uint64_t (*version)() = nullptr;
    find(library, "aoti_torch_abi_version", version);
    constexpr uint64_t release = 0xffffull << 48;
    if ((version() & release) == abi_of(built)) return;
    throw Refused{ACCELAES_MISSING, "The bundle was built with torch " + built + ", and this libtorch is " +
                                        std::to_string(version() >> 56) + "." + std::to_string(version() >> 48 & 0xff) +
                                        "; give the libtorch_cpu.so of that release as options.library"};
}

// What the compiled code uses of the CPU, as the bundle says it: the machine's name, then sets of instructions.
void check_cpu(const std::string& needed) {
    std::istringstream words(needed);
    std::string machine, own, line;
    words >> machine;
    utsname here{};
    uname(&here);
    if (!machine.empty() && machine != here.machine)
        throw Refused{ACCELAES_INPUT, "The bundle was built for " + machine + ", and this machine is " + here.machine +
                                          "; build it again here"};
    std::ifstream file("/proc/cpuinfo");
    while (std::getline(file, line) && line.rfind("flags", 0) != 0) {
    }
    if (!file) return;
    // Compilers and kernels spell a set with and without a hyphen or underscore.
    line.erase(std::remove(line.begin(), line.end(), '_'), line.end());
    line += ' ';
    for (std::string set; words >> set;) {
        if (line.find(' ' + set + ' ') == std::string::npos)
            throw Refused{ACCELAES_INPUT, "The bundle's engine uses " + set +
                                              ", which this CPU doesn't have; build it again here, or with --target "
                                              "x86-64-v3"};
    }
}

struct Engine {
    Torch torch;
    std::map<std::string, std::weak_ptr<aoti::Weights>> weights;  // by path: graphs share them
    std::mutex opening;

    explicit Engine(void* library) : torch(library) {}
};

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

// Gradients are off as long as it lives: the thread may be one that trains, in a process that has torch too.
class WithoutGrad {
   public:
    explicit WithoutGrad(const Torch& torch) : torch_(torch), was_(torch.has_grad()) { torch_.set_grad(false); }
    ~WithoutGrad() { torch_.set_grad(was_); }
    WithoutGrad(const WithoutGrad&) = delete;
    WithoutGrad& operator=(const WithoutGrad&) = delete;

   private:
    const Torch& torch_;
    bool was_;
};

class Graph {
   public:
    Graph(Engine& engine, const GraphFiles& files) : torch_(engine.torch) {
        for (size_t k = 0; k < files.in; ++k) inputs_.emplace_back(files.inputs[k]);
        for (size_t k = 0; k < files.out; ++k) outputs_.emplace_back(files.outputs[k]);
        std::string beside;
        for (size_t k = 1; k < files.count; ++k) {
            std::string path = files.paths[k];
            if (path.size() > 4 && path.compare(path.size() - 4, 4, ".pt2") == 0)
                throw Refused{ACCELAES_INPUT,
                              "It has a package for each bucket, which this runtime doesn't take; build "
                              "the bundle without compiling.per_bucket"};
            beside = path;
        }
        std::string library = aoti::extracted_library(files.paths[0]);
        library_ = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
        std::string why = library_ == nullptr ? dlerror() : "";
        unlink(library.c_str());
        if (library_ == nullptr) throw Refused{ACCELAES_INPUT, "Its code can't be loaded (" + why + ")"};
        try {
            create();
            if (!beside.empty()) bind(engine, beside);
        } catch (...) {
            close();
            throw;
        }
    }
    ~Graph() { close(); }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    void run(const Tensor* inputs, size_t in, const Tensor* outputs, size_t out) {
        std::lock_guard<std::mutex> lock(running_);
        WithoutGrad without(torch_);
        std::vector<AtenTensor*> given, made(outputs_.size(), nullptr);
        for (const auto& name : inputs_) {
            const Tensor* found = nullptr;
            for (size_t k = 0; k < in && found == nullptr; ++k) found = inputs[k].name == name ? &inputs[k] : nullptr;
            if (found == nullptr) {
                for (auto* tensor : given) torch_.release(tensor);
                throw Refused{ACCELAES_INPUT, "The engine isn't given " + name};
            }
            const char* dtype = safetensors_name(found->type);
            given.push_back(torch_.view(found->data, dtype, found->shape, static_cast<size_t>(found->rank)));
        }
        // Takes the inputs over.
        if (run_(container_, given.data(), given.size(), made.data(), made.size(), nullptr, nullptr) != 0)
            throw Refused{ACCELAES_FAILED, "AOTInductor says: " + last_error()};
        std::string wrong;
        for (size_t k = 0; k < made.size(); ++k) {
            const Tensor* wanted = nullptr;
            for (size_t j = 0; j < out && wanted == nullptr; ++j)
                wanted = outputs[j].name == outputs_[k] ? &outputs[j] : nullptr;
            if (wanted != nullptr && !fetch(made[k], *wanted)) wrong = outputs_[k];
            torch_.release(made[k]);
        }
        if (!wrong.empty()) throw Refused{ACCELAES_FAILED, "AOTInductor gives " + wrong + " another shape"};
    }

   private:
    void create() {
        find(library_, "AOTInductorModelContainerRunSingleThreaded", run_);
        find(library_, "AOTInductorModelContainerDelete", delete_);
        last_ = reinterpret_cast<const char* (*)()>(dlsym(library_, "AOTInductorGetLastError"));
        Code (*make)(ModelContainer**, size_t, const char*, const char*) = nullptr;
        Code (*count)(ModelContainer*, size_t*) = nullptr;
        find(library_, "AOTInductorModelContainerCreateWithDevice", make);
        if (make(&container_, 1, "cpu", nullptr) != 0)
            throw Refused{ACCELAES_INPUT, "AOTInductor says: " + last_error()};
        auto counted = [&](const char* name, size_t wanted) {
            size_t found = 0;
            find(library_, name, count);
            if (count(container_, &found) != 0 || found != wanted)
                throw Refused{ACCELAES_INPUT, "It has other tensors than its manifest says; build the bundle again"};
        };
        counted("AOTInductorModelContainerGetNumInputs", inputs_.size());
        counted("AOTInductorModelContainerGetNumOutputs", outputs_.size());
    }

    // The container's constants are the file's, which stay where they are mapped.
    void bind(Engine& engine, const std::string& path) {
        {
            std::lock_guard<std::mutex> lock(engine.opening);
            auto& kept = engine.weights[path];
            weights_ = kept.lock();
            if (weights_ == nullptr) kept = weights_ = std::make_shared<aoti::Weights>(path);
        }
        Code (*count)(ModelContainer*, size_t*) = nullptr;
        Code (*name)(ModelContainer*, size_t, const char**) = nullptr;
        Code (*written)(ModelContainer*, size_t, const char**) = nullptr;
        Code (*update)(ModelContainer*, const ConstantPair*, size_t, bool, bool) = nullptr;
        find(library_, "AOTInductorModelContainerGetNumConstants", count);
        find(library_, "AOTInductorModelContainerGetConstantName", name);
        find(library_, "AOTInductorModelContainerGetConstantOriginalFQN", written);
        find(library_, "AOTInductorModelContainerUpdateUserManagedConstantBufferPairs", update);
        size_t all = 0;
        count(container_, &all);
        std::vector<ConstantPair> pairs;
        for (size_t k = 0; k < all; ++k) {
            const char *own = nullptr, *known = nullptr;
            name(container_, k, &own);
            written(container_, k, &known);
            auto found = weights_->all().find(known == nullptr ? "" : known);
            if (found == weights_->all().end())
                throw Refused{ACCELAES_INPUT,
                              path + " lacks " + (known == nullptr ? "" : known) + "; build the bundle again"};
            const auto& weight = found->second;
            held_.push_back(torch_.view(weight.data, weight.dtype, weight.shape.data(), weight.shape.size()));
            pairs.push_back({own, held_.back()});
        }
        if (update(container_, pairs.data(), pairs.size(), false, true) != 0)
            throw Refused{ACCELAES_INPUT, "AOTInductor says: " + last_error()};
    }

    // Whether it has the shape that was asked for; then it is copied.
    bool fetch(AtenTensor* tensor, const Tensor& wanted) const {
        void* data = nullptr;
        int64_t rank = 0, *sizes = nullptr, *steps = nullptr, count = 1;
        torch_.data(tensor, &data);
        torch_.rank(tensor, &rank);
        torch_.sizes(tensor, &sizes);
        torch_.strides(tensor, &steps);
        if (rank != wanted.rank) return false;
        for (int64_t axis = 0; axis < rank; ++axis) {
            if (sizes[axis] != wanted.shape[axis]) return false;
            count *= sizes[axis];
        }
        char* to = static_cast<char*>(wanted.data);
        if (count > 0) copy(static_cast<const char*>(data), to, sizes, steps, rank, accelaes::width_of(wanted.type));
        return true;
    }

    std::string last_error() const { return last_ == nullptr ? "it failed" : last_(); }

    void close() {
        if (container_ != nullptr) delete_(container_);
        for (auto* tensor : held_) torch_.release(tensor);
        if (library_ != nullptr) dlclose(library_);
    }

    const Torch& torch_;
    std::vector<std::string> inputs_, outputs_;
    std::shared_ptr<aoti::Weights> weights_;
    std::vector<AtenTensor*> held_;
    void* library_ = nullptr;
    ModelContainer* container_ = nullptr;
    Code (*run_)(ModelContainer*, AtenTensor**, size_t, AtenTensor**, size_t, void*, void*) = nullptr;
    Code (*delete_)(ModelContainer*) = nullptr;
    const char* (*last_)() = nullptr;
    std::mutex running_;
};

void* open(const char* library, const char* const* built_with, const EngineDevice* device, EngineError* error) {
    return guarded(error, [&]() -> void* {
        if (std::string(device->functions->kind) != "cpu")
            throw Refused{ACCELAES_INPUT,
                          "AOTInductor's bundles run on a CPU here; leave options.device out, or build the bundle for "
                          "onnxruntime"};
        std::map<std::string, std::string> versions;
        for (; built_with[0] != nullptr; built_with += 2) versions[built_with[0]] = built_with[1];
        if (versions.count("SparseQueryAttention") > 0)
            throw Refused{ACCELAES_INPUT,
                          "The bundle's engine calls the attention plugin, which this runtime doesn't have"};
        check_cpu(versions["cpu"]);
        const char* name = library == nullptr ? "libtorch_cpu.so" : library;
        void* handle = dlopen(name, RTLD_NOW | RTLD_GLOBAL);  // packages look for its functions
        if (handle == nullptr)
            throw Refused{ACCELAES_MISSING, std::string("libtorch can't be loaded (") + dlerror() +
                                                "); install torch, or give its lib/libtorch_cpu.so as options.library"};
        check_torch(handle, versions["torch"]);
        return new Engine(handle);
    });
}

// Threads are OpenMP's, as many as when the package was compiled.
void* open_graph(void* engine, const GraphFiles* files, int, EngineError* error) {
    return guarded(error, [&]() -> void* { return new Graph(*static_cast<Engine*>(engine), *files); });
}

bool run(void* graph, const Tensor* inputs, size_t in, const Tensor* outputs, size_t out, EngineError* error) {
    return guarded(error, [&] {
        static_cast<Graph*>(graph)->run(inputs, in, outputs, out);
        return true;
    });
}

void close_graph(void* graph) { delete static_cast<Graph*>(graph); }
void close(void* engine) { delete static_cast<Engine*>(engine); }

const accelaes::EngineFormat format = {accelaes::engine_version, true, open, open_graph, run, close_graph, close};

}  // namespace

extern "C" ACCELAES_API const accelaes::EngineFormat* accelaes_engine_format() { return &format; }
