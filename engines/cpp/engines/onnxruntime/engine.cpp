// ONNX Runtime as an engine format: the user's own libonnxruntime, opened when a bundle wants it.
#include <dlfcn.h>

#include <memory>
#include <string>
#include <vector>

#include "accelaes.h"
#include "api.hpp"
#include "format.hpp"

namespace {

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
    Held<ort::Env> environment{library, ort::release_env};
    Held<ort::MemoryInfo> host{library, ort::release_memory_info};

    explicit Engine(const void* const* table) : library{table} {
        library.good(ort::create_env, 3 /* errors alone */, "accelaes", environment.out());
        library.good(ort::create_memory_info, "Cpu", 1 /* arena */, 0, 0 /* default */, host.out());
    }
};

struct Graph {
    const Engine& engine;
    Held<ort::Session> session{engine.library, ort::release_session};

    Graph(const Engine& of, const char* path, int threads) : engine(of) {
        const Library& library = engine.library;
        Held<ort::SessionOptions> options(library, ort::release_session_options);
        library.good(ort::create_session_options, options.out());
        library.good(ort::set_intra_op_threads, options.get(), threads);
        library.good(ort::set_graph_optimization_level, options.get(), 99 /* all */);
        library.good(ort::add_session_config_entry, options.get(), "session.intra_op.allow_spinning", "0");
        const ort::SessionOptions* set = options.get();
        const ort::Env* environment = engine.environment.get();
        library.good(ort::create_session, environment, path, set, session.out());
    }

    void run(const Tensor* inputs, size_t in, const Tensor* outputs, size_t out) const {
        const Library& library = engine.library;
        Held<ort::IoBinding> binding(library, ort::release_io_binding);
        library.good(ort::create_io_binding, session.get(), binding.out());
        std::vector<Held<ort::Value>> values;
        values.reserve(in + out);
        for (size_t k = 0; k < in + out; ++k) {
            const Tensor& tensor = k < in ? inputs[k] : outputs[k - in];
            size_t count = 1;
            for (int axis = 0; axis < tensor.rank; ++axis) count *= static_cast<size_t>(tensor.shape[axis]);
            if (k >= in && count == 0) continue;  // nothing to fetch
            size_t bytes = count * (tensor.type == accelaes::Type::i64 ? 8 : 4);
            const ort::MemoryInfo* host = engine.host.get();
            Held<ort::Value>& value = values.emplace_back(library, ort::release_value);
            library.good(ort::create_tensor_with_data, host, tensor.data, bytes, tensor.shape,
                         static_cast<size_t>(tensor.rank), static_cast<int>(tensor.type), value.out());
            const ort::Value* bound = value.get();
            library.good(k < in ? ort::bind_input : ort::bind_output, binding.get(), tensor.name, bound);
        }
        const ort::RunOptions* no_options = nullptr;
        const ort::IoBinding* bound = binding.get();
        library.good(ort::run_with_binding, session.get(), no_options, bound);
    }
};

void* open(const char* library, const char* const*, EngineError* error) {
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
        const void* const* table = base()->get_api(ort::api_version);
        if (table == nullptr) {
            throw Refused{ACCELAES_MISSING, std::string("ONNX Runtime ") + base()->version() +
                                                " is older than 1.10; install a newer one"};
        }
        return new Engine(table);
    });
}

void* open_graph(void* engine, const accelaes::GraphFiles* files, int threads, EngineError* error) {
    return guarded(error,
                   [&]() -> void* { return new Graph(*static_cast<Engine*>(engine), files->paths[0], threads); });
}

bool run(void* graph, const Tensor* inputs, size_t in, const Tensor* outputs, size_t out, EngineError* error) {
    return guarded(error, [&] {
        static_cast<Graph*>(graph)->run(inputs, in, outputs, out);
        return true;
    });
}

void close_graph(void* graph) { delete static_cast<Graph*>(graph); }
void close(void* engine) { delete static_cast<Engine*>(engine); }

const accelaes::EngineFormat format = {accelaes::engine_version, false, open, open_graph, run, close_graph, close};

}  // namespace

extern "C" ACCELAES_API const accelaes::EngineFormat* accelaes_engine_format() { return &format; }
