// ONNX Runtime as an engine format: the user's own libonnxruntime, opened when a bundle wants it.
#include <dlfcn.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "accelaes.h"
#include "api.hpp"
#include "format.hpp"

namespace {

using accelaes::EngineDevice;
using accelaes::EngineError;
using accelaes::guarded;
using accelaes::Refused;
using accelaes::Tensor;

struct Library {
    const void* const* table = nullptr;

    template <typename Result, typename... Arguments>
    Result call(ort::Place place, Arguments... arguments) const {
        using Function = Result (*)(Arguments...);
        return reinterpret_cast<Function>(const_cast<void*>(table[place]))(arguments...);
    }

    // A call that returns a status.
    template <typename... Arguments>
    void good(ort::Place place, Arguments... arguments) const {
        auto* status = call<ort::Status*>(place, arguments...);
        if (status == nullptr) return;
        std::string said = call<const char*>(ort::get_error_message, static_cast<const ort::Status*>(status));
        call<void>(ort::release_status, status);
        throw Refused{ACCELAES_FAILED, "ONNX Runtime says: " + said};
    }
};

// Something of the library's, released when it goes.
template <typename T>
class Held {
   public:
    Held(const Library& library, ort::Place release) : library_(&library), release_(release) {}
    Held(Held&& other) noexcept : library_(other.library_), release_(other.release_), it_(other.it_) {
        other.it_ = nullptr;
    }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    Held& operator=(Held&&) = delete;
    ~Held() {
        if (it_ != nullptr) library_->call<void>(release_, it_);
    }
    T* get() const { return it_; }
    T** out() { return &it_; }

   private:
    const Library* library_;
    ort::Place release_;
    T* it_ = nullptr;
};

struct Engine {
    Library library;
    EngineDevice device;
    Held<ort::Env> environment{library, ort::release_env};
    Held<ort::MemoryInfo> host{library, ort::release_memory_info};
    Held<ort::MemoryInfo> beside{library, ort::release_memory_info};  // of the device, where it isn't the host
    Held<ort::RunOptions> running{library, ort::release_run_options};
    std::mutex turns;  // a stream's work is queued by one thread at a time

    Engine(const void* const* table, const EngineDevice& of) : library{table}, device(of) {
        library.good(ort::create_env, 3 /* errors alone */, "accelaes", environment.out());
        library.good(ort::create_memory_info, "Cpu", 1 /* arena */, 0, 0 /* default */, host.out());
        if (device.on_host()) return;
        library.good(ort::create_memory_info, "Cuda", 0 /* device */, device.index, 0 /* default */, beside.out());
        library.good(ort::create_run_options, running.out());
        library.good(ort::add_run_config_entry, running.get(), "disable_synchronize_execution_providers", "1");
    }

    // Graphs run on the device's stream.
    void place(ort::SessionOptions* options) const {
        if (device.on_host()) return;
        Held<ort::CudaOptions> cuda(library, ort::release_cuda_provider_options);
        library.good(ort::create_cuda_provider_options, cuda.out());
        std::string index = std::to_string(device.index);
        const char *keys[] = {"device_id"}, *values[] = {index.c_str()};
        library.good(ort::update_cuda_provider_options, cuda.get(), static_cast<const char* const*>(keys),
                     static_cast<const char* const*>(values), size_t{1});
        void* stream = device.functions->stream(device.context);
        library.good(ort::update_cuda_provider_options_with_value, cuda.get(), "user_compute_stream", stream);
        const ort::CudaOptions* set = cuda.get();
        library.good(ort::append_cuda_provider, options, set);
    }
};

struct Graph {
    Engine& engine;
    Held<ort::Session> session{engine.library, ort::release_session};

    Graph(Engine& of, const char* path, int threads) : engine(of) {
        const Library& library = engine.library;
        Held<ort::SessionOptions> options(library, ort::release_session_options);
        library.good(ort::create_session_options, options.out());
        library.good(ort::set_intra_op_threads, options.get(), threads);
        library.good(ort::set_graph_optimization_level, options.get(), 99 /* all */);
        library.good(ort::add_session_config_entry, options.get(), "session.intra_op.allow_spinning", "0");
        engine.place(options.get());
        const ort::SessionOptions* set = options.get();
        const ort::Env* environment = engine.environment.get();
        library.good(ort::create_session, environment, path, set, session.out());
    }
};

// A graph with its tensors.
struct Bound {
    const Graph& graph;
    Held<ort::IoBinding> binding{graph.engine.library, ort::release_io_binding};
    std::vector<Held<ort::Value>> values;
    bool fetched = false;  // to the host, from another device

    Bound(const Graph& of, const Tensor* inputs, size_t in, const Tensor* outputs, size_t out) : graph(of) {
        const Engine& engine = graph.engine;
        const Library& library = engine.library;
        library.good(ort::create_io_binding, graph.session.get(), binding.out());
        values.reserve(in + out);
        for (size_t k = 0; k < in + out; ++k) {
            const Tensor& tensor = k < in ? inputs[k] : outputs[k - in];
            size_t count = 1;
            for (int axis = 0; axis < tensor.rank; ++axis) count *= static_cast<size_t>(tensor.shape[axis]);
            if (k >= in && count == 0) continue;  // nothing to fetch
            fetched = fetched || (k >= in && tensor.on_host && !engine.device.on_host());
            size_t bytes = count * accelaes::width_of(tensor.type);
            bool on_host = tensor.on_host || engine.device.on_host();
            const ort::MemoryInfo* memory = on_host ? engine.host.get() : engine.beside.get();
            Held<ort::Value>& value = values.emplace_back(library, ort::release_value);
            library.good(ort::create_tensor_with_data, memory, tensor.data, bytes, tensor.shape,
                         static_cast<size_t>(tensor.rank), static_cast<int>(tensor.type), value.out());
            const ort::Value* bound = value.get();
            library.good(k < in ? ort::bind_input : ort::bind_output, binding.get(), tensor.name, bound);
        }
    }

    void run() const {
        Engine& engine = graph.engine;
        const ort::RunOptions* running = engine.running.get();
        const ort::IoBinding* bound = binding.get();
        std::unique_lock<std::mutex> turn(engine.turns, std::defer_lock);
        if (!engine.device.on_host()) turn.lock();
        engine.library.good(ort::run_with_binding, graph.session.get(), running, bound);
        EngineError error = {};
        if (fetched && !engine.device.functions->wait(engine.device.context, &error))
            throw Refused{error.code, error.sentence};
    }
};

void* open(const char* library, const char* const*, const EngineDevice* device, EngineError* error) {
    return guarded(error, [&]() -> void* {
        const char* name = library == nullptr ? "libonnxruntime.so.1" : library;
        void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (handle == nullptr) {
            throw Refused{ACCELAES_MISSING, std::string("ONNX Runtime can't be loaded (") + dlerror() +
                                                "); install it, or give its libonnxruntime.so as options.library"};
        }
        auto* base = reinterpret_cast<const ort::Base* (*)()>(dlsym(handle, "OrtGetApiBase"));
        if (base == nullptr) {
            throw Refused{ACCELAES_MISSING,
                          std::string(name) + " is no ONNX Runtime; give its libonnxruntime.so as options.library"};
        }
        bool on_host = device->on_host();
        const void* const* table = base()->get_api(on_host ? ort::api_version : ort::cuda_api_version);
        if (table == nullptr) {
            throw Refused{ACCELAES_MISSING, std::string("ONNX Runtime ") + base()->version() + " is older than 1." +
                                                std::to_string(on_host ? ort::api_version : ort::cuda_api_version) +
                                                "; install a newer one"};
        }
        return new Engine(table, *device);
    });
}

void* open_graph(void* engine, const accelaes::GraphFiles* files, int threads, EngineError* error) {
    return guarded(error,
                   [&]() -> void* { return new Graph(*static_cast<Engine*>(engine), files->paths[0], threads); });
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

extern "C" ACCELAES_API const accelaes::EngineFormat* accelaes_engine_format() { return &format; }
