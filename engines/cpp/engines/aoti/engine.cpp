// AOTInductor as an engine format: a package's library and the user's libtorch, both opened by their C interface.
#include <dlfcn.h>
#include <sys/utsname.h>

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
#include "aoti/torch.hpp"
#include "format.hpp"
#include "weights.hpp"

namespace aoti {
namespace {

using accelaes::EngineDevice;
using accelaes::EngineError;
using accelaes::GraphFiles;
using accelaes::guarded;
using accelaes::Refused;
using accelaes::Tensor;
using accelaes::Weight;
using accelaes::Weights;

struct ModelContainer;
struct ConstantPair {
    const char* name;
    AtenTensor* tensor;
};

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
    std::map<std::string, std::weak_ptr<Weights>> weights;  // by path: graphs share them
    std::mutex opening;

    Engine(void* library, void* cuda, const EngineDevice& device) : torch(library, cuda, device) {}
};

// A compiled graph.
class Package {
   public:
    // `beside`: the file with its weights, or "".
    Package(Engine& engine, const GraphFiles& files, const std::string& path, const std::string& beside)
        : torch_(engine.torch), extracted_(path, !torch_.on_host()) {
        for (size_t k = 0; k < files.in; ++k) inputs_.emplace_back(files.inputs[k]);
        for (size_t k = 0; k < files.out; ++k) outputs_.emplace_back(files.outputs[k]);
        library_ = dlopen(extracted_.library().c_str(), RTLD_NOW | RTLD_LOCAL);
        if (library_ == nullptr)
            throw Refused{ACCELAES_INPUT, std::string("Its code can't be loaded (") + dlerror() + ")"};
        if (torch_.on_host()) extracted_.remove();  // kernels are loaded when they first run
        try {
            create();
            if (!beside.empty()) bind(engine, beside);
        } catch (...) {
            close();
            throw;
        }
    }
    ~Package() { close(); }
    Package(const Package&) = delete;
    Package& operator=(const Package&) = delete;

    void run(const Tensor* inputs, size_t in, const Tensor* outputs, size_t out) {
        std::lock_guard<std::mutex> lock(running_);
        Turn turn(torch_);
        Held given(torch_), made(torch_);
        made.all.resize(outputs_.size());
        for (const auto& name : inputs_) {
            const Tensor* found = nullptr;
            for (size_t k = 0; k < in && found == nullptr; ++k) found = inputs[k].name == name ? &inputs[k] : nullptr;
            if (found == nullptr) throw Refused{ACCELAES_INPUT, "The engine isn't given " + name};
            given.all.push_back(torch_.given(*found));
        }
        auto inputs_of_call = std::move(given.all);  // which takes them over
        given.all.clear();
        if (run_(container_, inputs_of_call.data(), inputs_of_call.size(), made.all.data(), made.all.size(),
                 torch_.stream(), nullptr) != 0)
            throw Refused{ACCELAES_FAILED, "AOTInductor says: " + last_error()};
        for (size_t k = 0; k < made.all.size(); ++k) {
            const Tensor* wanted = nullptr;
            for (size_t j = 0; j < out && wanted == nullptr; ++j)
                wanted = outputs[j].name == outputs_[k] ? &outputs[j] : nullptr;
            if (wanted != nullptr && !torch_.fetch(made.all[k], *wanted))
                throw Refused{ACCELAES_FAILED, "AOTInductor gives " + outputs_[k] + " another shape"};
        }
    }

   private:
    // torch's tensors, which go with it.
    struct Held {
        const Torch& torch;
        std::vector<AtenTensor*> all;

        explicit Held(const Torch& of) : torch(of) {}
        Held(const Held&) = delete;
        Held& operator=(const Held&) = delete;
        ~Held() {
            for (auto* tensor : all) {
                if (tensor != nullptr) torch.release(tensor);
            }
        }
    };

    void create() {
        find(library_, "AOTInductorModelContainerRunSingleThreaded", run_);
        find(library_, "AOTInductorModelContainerDelete", delete_);
        last_ = reinterpret_cast<const char* (*)()>(dlsym(library_, "AOTInductorGetLastError"));
        Code (*make)(ModelContainer**, size_t, const char*, const char*) = nullptr;
        Code (*count)(ModelContainer*, size_t*) = nullptr;
        find(library_, "AOTInductorModelContainerCreateWithDevice", make);
        std::string device = torch_.on_host() ? "cpu" : "cuda:" + std::to_string(torch_.device().index);
        const char* kernels = torch_.on_host() ? nullptr : extracted_.folder().c_str();
        if (make(&container_, 1, device.c_str(), kernels) != 0)
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
            if (weights_ == nullptr) kept = weights_ = std::make_shared<Weights>(path);
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
            held_.push_back(torch_.view(on_device(weight), weight.dtype, weight.shape.data(), weight.shape.size(),
                                        torch_.on_host()));
            pairs.push_back({own, held_.back()});
        }
        if (update(container_, pairs.data(), pairs.size(), false, true) != 0)
            throw Refused{ACCELAES_INPUT, "AOTInductor says: " + last_error()};
    }

    // Where a weight is for the engine: where the file is mapped, or in memory of the device.
    void* on_device(const Weight& weight) {
        const auto& device = torch_.device();
        if (torch_.on_host()) return weight.data;
        void* made = device.functions->allocate(device.context, weight.bytes);
        if (made == nullptr)
            throw Refused{ACCELAES_FAILED, "The GPU has too little memory for the engine's weights; free some of it"};
        copies_.push_back(made);
        device.functions->write(device.context, made, weight.data, weight.bytes);
        return made;
    }

    std::string last_error() const { return last_ == nullptr ? "it failed" : last_(); }

    void close() {
        if (container_ != nullptr) delete_(container_);
        for (auto* tensor : held_) torch_.release(tensor);
        for (auto* copy : copies_) torch_.device().functions->release(torch_.device().context, copy);
        if (library_ != nullptr) dlclose(library_);
    }

    const Torch& torch_;
    Extracted extracted_;
    std::vector<std::string> inputs_, outputs_;
    std::shared_ptr<Weights> weights_;
    std::vector<AtenTensor*> held_;
    std::vector<void*> copies_;  // of weights, on the device
    void* library_ = nullptr;
    ModelContainer* container_ = nullptr;
    Code (*run_)(ModelContainer*, AtenTensor**, size_t, AtenTensor**, size_t, void*, void*) = nullptr;
    Code (*delete_)(ModelContainer*) = nullptr;
    const char* (*last_)() = nullptr;
    std::mutex running_;
};

// A graph in one package, or in one for each bucket, whose names say its focus tokens: focus_step.n72.pt2.
class Graph {
   public:
    Graph(Engine& engine, const GraphFiles& files) {
        std::vector<std::string> paths(files.paths, files.paths + files.count);
        auto weights = std::stable_partition(paths.begin(), paths.end(), [](const std::string& path) {
            return path.size() > 4 && path.compare(path.size() - 4, 4, ".pt2") == 0;
        });
        std::string beside = weights == paths.end() ? "" : *weights;
        for (auto path = paths.begin(); path != weights; ++path) {
            int64_t tokens = weights - paths.begin() == 1 ? 0 : tokens_of(*path);
            packages_[tokens] = std::make_unique<Package>(engine, files, *path, beside);
        }
    }

    Package& of(const std::vector<Tensor>& inputs) const {
        if (packages_.size() == 1) return *packages_.begin()->second;
        for (const auto& tensor : inputs) {
            if (std::strcmp(tensor.name, "focus_index") != 0 || tensor.rank != 2) continue;
            auto found = packages_.find(tensor.shape[1]);
            if (found != packages_.end()) return *found->second;
        }
        throw Refused{ACCELAES_INPUT, "The engine has no package for a call of these sizes; build the bundle again"};
    }

   private:
    static int64_t tokens_of(const std::string& path) {
        size_t end = path.size() - 4, begin = path.rfind(".n", end - 1);
        std::string digits = begin == std::string::npos ? "" : path.substr(begin + 2, end - begin - 2);
        if (digits.empty() || digits.size() > 9 || digits.find_first_not_of("0123456789") != std::string::npos)
            throw Refused{ACCELAES_INPUT, path + " doesn't say which bucket it is of; build the bundle again"};
        return std::stoll(digits);
    }

    std::map<int64_t, std::unique_ptr<Package>> packages_;  // by focus tokens, where there are several
};

// Tensors of a graph's calls: torch's own are made anew for each, as a call takes them over.
struct Bound {
    std::vector<Tensor> inputs, outputs;
    Package& package;
    std::vector<std::string> names;
    std::vector<std::vector<int64_t>> shapes;

    Bound(Graph& of, const Tensor* in, size_t given, const Tensor* out, size_t made)
        : inputs(in, in + given), outputs(out, out + made), package(of.of(inputs)) {
        names.reserve(given + made);
        shapes.reserve(given + made);
        for (auto* tensors : {&inputs, &outputs}) {
            for (Tensor& tensor : *tensors) {
                tensor.name = names.emplace_back(tensor.name).c_str();
                tensor.shape = shapes.emplace_back(tensor.shape, tensor.shape + tensor.rank).data();
            }
        }
    }
};

void* loaded(const std::string& name) {
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL);  // packages look for its functions
    if (handle == nullptr)
        throw Refused{ACCELAES_MISSING, std::string("libtorch can't be loaded (") + dlerror() +
                                            "); install torch, or give its lib/libtorch_cpu.so as options.library"};
    return handle;
}

void* open(const char* library, const char* const* built_with, const EngineDevice* device, EngineError* error) {
    return guarded(error, [&]() -> void* {
        std::map<std::string, std::string> versions;
        for (; built_with[0] != nullptr; built_with += 2) versions[built_with[0]] = built_with[1];
        if (versions.count("SparseQueryAttention") > 0)
            throw Refused{ACCELAES_INPUT,
                          "The bundle's engine calls the attention plugin, which this runtime doesn't have"};
        bool on_host = device->on_host();
        if (on_host != (versions.count("cpu") > 0))
            throw Refused{ACCELAES_INPUT, std::string("The bundle's engine is compiled for ") +
                                              (on_host ? "a GPU, and options.device is a CPU; give cuda"
                                                       : "a CPU, and options.device is a GPU; give cpu") +
                                              ", or build it for the other with --target"};
        if (on_host) check_cpu(versions["cpu"]);
        std::string name = library == nullptr ? "libtorch_cpu.so" : library;
        void* handle = loaded(name);
        check_torch(handle, versions["torch"]);
        if (on_host) return new Engine(handle, nullptr, *device);
        return new Engine(handle, loaded(name.substr(0, name.rfind('/') + 1) + "libtorch_cuda.so"), *device);
    });
}

// Threads are OpenMP's, as many as when the package was compiled.
void* open_graph(void* engine, const GraphFiles* files, int, EngineError* error) {
    return guarded(error, [&]() -> void* { return new Graph(*static_cast<Engine*>(engine), *files); });
}

void* bind(void* graph, const Tensor* inputs, size_t in, const Tensor* outputs, size_t out, EngineError* error) {
    return guarded(error, [&]() -> void* { return new Bound(*static_cast<Graph*>(graph), inputs, in, outputs, out); });
}

bool run(void* bound, EngineError* error) {
    return guarded(error, [&] {
        auto& own = *static_cast<Bound*>(bound);
        own.package.run(own.inputs.data(), own.inputs.size(), own.outputs.data(), own.outputs.size());
        return true;
    });
}

void unbind(void* bound) { delete static_cast<Bound*>(bound); }
void close_graph(void* graph) { delete static_cast<Graph*>(graph); }
void close(void* engine) { delete static_cast<Engine*>(engine); }

const accelaes::EngineFormat format = {
    accelaes::engine_version, true, open, open_graph, bind, run, unbind, close_graph, close};

}  // namespace
}  // namespace aoti

extern "C" ACCELAES_API const accelaes::EngineFormat* accelaes_engine_format() { return &aoti::format; }
