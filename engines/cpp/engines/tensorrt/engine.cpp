// TensorRT, or TensorRT for RTX, as an engine format: the user's own library, opened when a bundle wants it.
//
// Compiled against NVIDIA's headers, once for each of the two. All that is called are virtual functions of objects
// which the library makes, so it isn't linked.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "format.hpp"
#include "mapped.hpp"
#include "weights.hpp"

#define ACCELAES_WRITTEN(number) #number
#define ACCELAES_DIGITS(number) ACCELAES_WRITTEN(number)

namespace trt {
namespace {

using accelaes::EngineDevice;
using accelaes::EngineError;
using accelaes::GraphFiles;
using accelaes::guarded;
using accelaes::Mapped;
using accelaes::Refused;
using accelaes::Tensor;
using accelaes::Weights;

// As wheels and packages name it, with the release of the headers.
const std::string library_name = ACCELAES_TENSORRT_LIBRARY "." ACCELAES_DIGITS(NV_TENSORRT_MAJOR);
constexpr size_t alignment = 256;  // bytes; TensorRT refuses tensors that start elsewhere
const char* const plugin_name = "SparseQueryAttention";
const char* const plugin_variable = "ACCELAES_PLUGIN";

// Keeps what TensorRT complained of last, which is all that it says of a failure.
class Log : public nvinfer1::ILogger {
   public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        std::lock_guard<std::mutex> lock(writing_);
        last_ = message;
    }
    std::string last() {
        std::lock_guard<std::mutex> lock(writing_);
        return last_.empty() ? "nothing" : last_;
    }

   private:
    std::mutex writing_;
    std::string last_;
};

// Memory of the device.
class Room {
   public:
    Room(const EngineDevice& device, size_t bytes)
        : device_(&device), bytes_(bytes), data_(device.functions->allocate(device.context, bytes)) {
        if (data_ == nullptr)
            throw Refused{ACCELAES_FAILED, "The GPU has no room for " + std::to_string(bytes) +
                                               " bytes; free memory, or build with a smaller batch or resolution"};
    }
    Room(Room&& other) noexcept : device_(other.device_), bytes_(other.bytes_), data_(other.data_) {
        other.data_ = nullptr;
    }
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;
    Room& operator=(Room&&) = delete;
    ~Room() {
        if (data_ != nullptr) device_->functions->release(device_->context, data_);
    }
    void* data() const { return data_; }
    size_t bytes() const { return bytes_; }

   private:
    const EngineDevice* device_;
    size_t bytes_;
    void* data_;
};

size_t width_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kINT64: return 8;
        case nvinfer1::DataType::kFLOAT:
        case nvinfer1::DataType::kINT32: return 4;
        case nvinfer1::DataType::kHALF:
        case nvinfer1::DataType::kBF16: return 2;
        default: return 1;
    }
}

struct Engine {
    EngineDevice device;
    std::string built;  // the release that the bundle's engines are of; "" where it doesn't say
    std::string here;
    Log log;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::map<std::string, std::shared_ptr<std::map<std::string, Room>>> weights;  // by path: graphs share them
    std::mutex opening;

    explicit Engine(const EngineDevice& of) : device(of) {}

    // Its device is made the calling thread's.
    cudaStream_t stream() const { return static_cast<cudaStream_t>(device.functions->stream(device.context)); }

    void require(bool accepted, const std::string& what) {
        if (!accepted) throw Refused{ACCELAES_FAILED, ACCELAES_TENSORRT_NAME " refused " + what + ": " + log.last()};
    }
};

struct Bound;

// One of an engine's profiles: a context with its scratch memory, which calls share in turn.
struct Profile {
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    const Bound* bound = nullptr;        // the call whose tensors it has
    std::map<std::string, Room> unread;  // for outputs that nobody asked for: TensorRT writes them all the same
};

struct Graph {
    Engine& engine;
    std::unique_ptr<nvinfer1::ICudaEngine> it;
    std::shared_ptr<std::map<std::string, Room>> weights;  // those that are inputs
    std::vector<std::string> outputs;
    std::vector<Profile> profiles;
    std::mutex turns;  // a context is one thread's at a time

    Graph(Engine& of, const GraphFiles& files) : engine(of) {
        engine.stream();
        Mapped file(files.paths[0]);
        it.reset(engine.runtime->deserializeCudaEngine(file.data(), file.size()));
        if (it == nullptr) {
            std::string release = engine.built.empty() || engine.built == engine.here
                                      ? "on this GPU"
                                      : "of release " + engine.built + ", and here is " + engine.here;
            throw Refused{ACCELAES_INPUT, "It is an engine that can't be opened " + release + " (" +
                                              ACCELAES_TENSORRT_NAME " says: " + engine.log.last() +
                                              "); build the bundle again for this GPU and release"};
        }
        if (files.count > 1) weights = loaded(files.paths[1]);
        check_names(files);
        profiles.resize(static_cast<size_t>(std::max(it->getNbOptimizationProfiles(), 1)));
    }

    size_t bytes_of(const std::string& name, const nvinfer1::Dims& shape) const {
        size_t bytes = width_of(it->getTensorDataType(name.c_str()));
        for (int axis = 0; axis < shape.nbDims; ++axis) {
            if (shape.d[axis] < 0) throw Refused{ACCELAES_FAILED, "The engine doesn't say how large " + name + " is"};
            bytes *= static_cast<size_t>(shape.d[axis]);
        }
        return bytes;
    }

    // The profile whose ranges these shapes lie in.
    size_t profile_of(const Tensor* inputs, size_t in) const {
        for (size_t k = 0; k < profiles.size(); ++k) {
            bool fits = true;
            for (size_t j = 0; fits && j < in; ++j) fits = lies_in(inputs[j], static_cast<int32_t>(k));
            if (fits) return k;
        }
        throw Refused{ACCELAES_INPUT, "The engine has no profile for a call of these sizes; build the bundle again"};
    }

    // A profile with its context, which is made when it is first used.
    Profile& opened(size_t index) {
        Profile& own = profiles[index];
        if (own.context != nullptr) return own;
        // Scratch memory for this profile alone.
        own.context.reset(it->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kON_PROFILE_CHANGE));
        engine.require(own.context != nullptr &&
                           own.context->setOptimizationProfileAsync(static_cast<int32_t>(index), engine.stream()),
                       "a context for profile " + std::to_string(index) + ", for which there may be no room");
        engine.require(wait(), "to set a profile");
        return own;
    }

   private:
    bool wait() const {
        EngineError error = {};
        return engine.device.functions->wait(engine.device.context, &error);
    }

    bool lies_in(const Tensor& tensor, int32_t profile) const {
        using Select = nvinfer1::OptProfileSelector;
        nvinfer1::Dims least = it->getProfileShape(tensor.name, profile, Select::kMIN);
        nvinfer1::Dims most = it->getProfileShape(tensor.name, profile, Select::kMAX);
        if (least.nbDims < 0) return true;  // its shape is fixed
        bool fits = least.nbDims == tensor.rank && most.nbDims == tensor.rank;
        for (int axis = 0; fits && axis < tensor.rank; ++axis)
            fits = tensor.shape[axis] >= least.d[axis] && tensor.shape[axis] <= most.d[axis];
        return fits;
    }

    std::shared_ptr<std::map<std::string, Room>> loaded(const std::string& path) {
        std::lock_guard<std::mutex> lock(engine.opening);
        auto& found = engine.weights[path];
        if (found != nullptr) return found;
        auto made = std::make_shared<std::map<std::string, Room>>();
        Weights file(path);
        for (const auto& [name, weight] : file.all()) {
            auto [place, fresh] = made->emplace(name, Room(engine.device, std::max(weight.bytes, size_t{1})));
            engine.device.functions->write(engine.device.context, place->second.data(), weight.data, weight.bytes);
        }
        engine.require(wait(), "the weights");  // the file goes
        return found = made;
    }

    void check_names(const GraphFiles& files) {
        std::vector<std::string> wanted(files.inputs, files.inputs + files.in), found;
        for (size_t k = 0; k < files.out; ++k) outputs.emplace_back(files.outputs[k]);
        wanted.insert(wanted.end(), outputs.begin(), outputs.end());
        if (weights != nullptr) {
            for (const auto& [name, room] : *weights) wanted.push_back(name);
        }
        for (int32_t k = 0; k < it->getNbIOTensors(); ++k) found.emplace_back(it->getIOTensorName(k));
        std::sort(wanted.begin(), wanted.end());
        std::sort(found.begin(), found.end());
        if (wanted != found)
            throw Refused{ACCELAES_INPUT, "Its tensors are others than the manifest's; build the bundle again"};
        if (weights == nullptr) return;
        for (const auto& [name, room] : *weights) {
            if (room.bytes() != std::max(bytes_of(name, it->getTensorShape(name.c_str())), size_t{1}))
                throw Refused{ACCELAES_INPUT, "Its weight " + name + " is of another size; build the bundle again"};
        }
    }
};

// A graph with a call's tensors.
struct Bound {
    struct Place {
        std::string name;
        nvinfer1::Dims shape;
        void* address;  // for TensorRT
        void* own;      // the caller's, where `address` is a copy of it
        size_t bytes;
        bool on_host;
    };

    Graph& graph;
    size_t profile;
    Room nothing;  // the address of tensors of no numbers
    std::vector<Place> inputs, outputs;
    std::vector<Room> copies;

    Bound(Graph& of, const Tensor* given, size_t in, const Tensor* made, size_t out)
        : graph(of), profile(of.profile_of(given, in)), nothing(of.engine.device, alignment) {
        copies.reserve(in + out);
        for (size_t k = 0; k < in; ++k) inputs.push_back(placed(given[k]));
        for (size_t k = 0; k < out; ++k) outputs.push_back(placed(made[k]));
    }
    Bound(const Bound&) = delete;
    Bound& operator=(const Bound&) = delete;
    ~Bound() {
        std::lock_guard<std::mutex> turn(graph.turns);
        if (graph.profiles[profile].bound == this) graph.profiles[profile].bound = nullptr;
    }

    void run() {
        Engine& engine = graph.engine;
        const auto& device = engine.device;
        std::lock_guard<std::mutex> turn(graph.turns);
        cudaStream_t stream = engine.stream();
        for (const auto& one : inputs) {
            if (one.own == nullptr) continue;
            auto bring = one.on_host ? device.functions->write : device.functions->copy;
            bring(device.context, one.address, one.own, one.bytes);
        }
        Profile& in_use = graph.opened(profile);
        if (in_use.bound != this) give(in_use);
        engine.require(in_use.context->enqueueV3(stream), "a call");
        for (const auto& one : outputs) {
            if (one.own == nullptr) continue;
            EngineError error = {};
            if (!one.on_host)
                device.functions->copy(device.context, one.own, one.address, one.bytes);
            else if (!device.functions->read(device.context, one.own, one.address, one.bytes, &error))
                throw Refused{error.code, error.sentence};
        }
    }

   private:
    Place placed(const Tensor& tensor) {
        Place place{tensor.name, {}, tensor.data, nullptr, accelaes::width_of(tensor.type), tensor.on_host};
        place.shape.nbDims = tensor.rank;
        for (int axis = 0; axis < tensor.rank; ++axis) {
            place.shape.d[axis] = tensor.shape[axis];
            place.bytes *= static_cast<size_t>(tensor.shape[axis]);
        }
        if (place.bytes == 0) {
            place.address = nothing.data();
        } else if (tensor.on_host || reinterpret_cast<uintptr_t>(tensor.data) % alignment != 0) {
            place.own = tensor.data;
            place.address = copies.emplace_back(graph.engine.device, place.bytes).data();
        }
        return place;
    }

    // As the engine has a tensor, once the shapes of the inputs are set.
    size_t bytes_of(const Profile& of, const std::string& name) const {
        return graph.bytes_of(name, of.context->getTensorShape(name.c_str()));
    }

    // An engine reads and writes as much as it says itself, whatever the manifest does.
    void check_size(const Profile& of, const Place& one) const {
        if (bytes_of(of, one.name) != one.bytes)
            throw Refused{ACCELAES_INPUT,
                          "The engine's " + one.name +
                              " has another type or size than the manifest says; build the bundle again"};
    }

    // The context is told of these tensors.
    void give(Profile& to) {
        Engine& engine = graph.engine;
        auto& context = *to.context;
        to.bound = nullptr;
        for (const auto& one : inputs) {
            const char* name = one.name.c_str();
            engine.require(context.setInputShape(name, one.shape), "the shape of " + one.name);
            engine.require(context.setTensorAddress(name, one.address), "the address of " + one.name);
        }
        if (graph.weights != nullptr) {
            for (const auto& [name, room] : *graph.weights)
                engine.require(context.setTensorAddress(name.c_str(), room.data()), "the address of " + name);
        }
        for (const auto& one : inputs) check_size(to, one);
        for (const auto& one : outputs) check_size(to, one);
        for (const auto& name : graph.outputs) {
            auto asked =
                std::find_if(outputs.begin(), outputs.end(), [&](const auto& one) { return one.name == name; });
            void* address = asked != outputs.end() ? asked->address : unread(to, name);
            engine.require(context.setTensorAddress(name.c_str(), address), "the address of " + name);
        }
        to.bound = this;
    }

    void* unread(Profile& of, const std::string& name) {
        size_t bytes = bytes_of(of, name);
        auto found = of.unread.find(name);
        if (found != of.unread.end() && found->second.bytes() < bytes) {
            of.unread.erase(found);
            found = of.unread.end();
        }
        if (found == of.unread.end())
            found = of.unread.emplace(name, Room(graph.engine.device, std::max(bytes, alignment))).first;
        return found->second.data();
    }
};

// The release that a bundle says it was built with, by the package's name; "" where it doesn't.
std::string release_of(const char* const* built_with, const char* package) {
    for (size_t k = 0; built_with[k] != nullptr; k += 2) {
        if (std::strcmp(built_with[k], package) == 0) return built_with[k + 1];
    }
    return "";
}

template <typename Function>
Function found_in(void* handle, const char* symbol) {
    return reinterpret_cast<Function>(dlsym(handle, symbol));
}

void* open(const char* library, const char* const* built_with, const EngineDevice* device, EngineError* error) {
    return guarded(error, [&]() -> void* {
        if (device->on_host())
            throw Refused{ACCELAES_INPUT,
                          "The bundle's engine runs on an NVIDIA GPU; open it with options.device cuda"};
        std::string name = library == nullptr ? library_name : library;
        void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL);  // plugins look for its registry
        if (handle == nullptr)
            throw Refused{ACCELAES_MISSING, std::string(ACCELAES_TENSORRT_NAME " can't be loaded (") + dlerror() +
                                                "); install it, or give its " + library_name + " as options.library"};
        auto* create = found_in<void* (*)(void*, int32_t)>(handle, "createInferRuntime_INTERNAL");
        auto* version = found_in<int32_t (*)()>(handle, "getInferLibVersion");
        if (create == nullptr || version == nullptr)
            throw Refused{ACCELAES_MISSING,
                          name + " is no " ACCELAES_TENSORRT_NAME "; give its " + library_name + " as options.library"};
        auto made = std::make_unique<Engine>(*device);
        made->built = release_of(built_with, ACCELAES_TENSORRT_PACKAGE);
        int32_t here = version();
        made->here =
            std::to_string(here / 10000) + "." + std::to_string(here / 100 % 100) + "." + std::to_string(here % 100);
        made->stream();
        made->runtime.reset(static_cast<nvinfer1::IRuntime*>(create(&made->log, NV_TENSORRT_VERSION)));
        if (made->runtime == nullptr)
            throw Refused{ACCELAES_MISSING, ACCELAES_TENSORRT_NAME " " + made->here +
                                                " can't be used (it says: " + made->log.last() +
                                                "); install NVIDIA's driver, and the release "
                                                "that libaccelaes was built for"};
        if (!release_of(built_with, plugin_name).empty()) {
            const char* path = std::getenv(plugin_variable);
            if (path == nullptr || made->runtime->getPluginRegistry().loadLibrary(path) == nullptr)
                throw Refused{ACCELAES_MISSING, std::string("The bundle's engine has layers of the attention plugin; "
                                                            "name its library in ") +
                                                    plugin_variable + " (docs/plugin.md)" +
                                                    (path == nullptr ? "" : ": " + made->log.last())};
        }
        return made.release();
    });
}

void* open_graph(void* engine, const GraphFiles* files, int, EngineError* error) {
    return guarded(error, [&]() -> void* { return new Graph(*static_cast<Engine*>(engine), *files); });
}

void* bind(void* graph, const Tensor* inputs, size_t in, const Tensor* outputs, size_t out, EngineError* error) {
    return guarded(error, [&]() -> void* { return new Bound(*static_cast<Graph*>(graph), inputs, in, outputs, out); });
}

bool run(void* bound, EngineError* error) {
    return guarded(error, [&] {
        static_cast<Bound*>(bound)->run();
        return true;
    });
}

void unbind(void* bound) { delete static_cast<Bound*>(bound); }
void close_graph(void* graph) { delete static_cast<Graph*>(graph); }
void close(void* engine) { delete static_cast<Engine*>(engine); }

const accelaes::EngineFormat format = {
    accelaes::engine_version, false, open, open_graph, bind, run, unbind, close_graph, close};

}  // namespace
}  // namespace trt

extern "C" ACCELAES_API const accelaes::EngineFormat* accelaes_engine_format() { return &trt::format; }
