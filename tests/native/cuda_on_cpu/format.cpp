// ONNX Runtime's engine format for tensors in the memory of cuda_runtime.h beside this file: opened while it runs.
#include <dlfcn.h>

#include <cstdlib>

#include "accelaes.h"
#include "engine.hpp"

namespace {

using accelaes::EngineDevice;
using accelaes::EngineError;
using accelaes::EngineFormat;
using accelaes::Tensor;

void (*open_memory)(bool);

const EngineFormat& real() {
    static const auto* format = reinterpret_cast<accelaes::EngineEntry>(
        dlsym(dlopen(std::getenv("ACCELAES_REAL_FORMAT"), RTLD_NOW), "accelaes_engine_format"))();
    return *format;
}

void* open(const char* library, const char* const* built_with, const EngineDevice* device, EngineError* error) {
    Dl_info where;
    dladdr(device->functions, &where);
    void* own = dlopen(where.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    open_memory = reinterpret_cast<void (*)(bool)>(dlsym(own, "accelaes_open_memory"));
    static accelaes::DeviceFunctions host = *device->functions;
    host.kind = "cpu";
    EngineDevice on_host = {&host, device->context, 0};
    return real().open(library, built_with, &on_host, error);
}

void* open_graph(void* engine, const accelaes::GraphFiles* files, int threads, EngineError* error) {
    return real().open_graph(engine, files, threads, error);
}

void* bind(void* graph, const Tensor* inputs, size_t in, const Tensor* outputs, size_t out, EngineError* error) {
    return real().bind(graph, inputs, in, outputs, out, error);
}

bool run(void* bound, EngineError* error) {
    open_memory(true);
    bool good = real().run(bound, error);
    open_memory(false);
    return good;
}

void unbind(void* bound) { real().unbind(bound); }

void close_graph(void* graph) { real().close_graph(graph); }
void close(void* engine) { real().close(engine); }

const EngineFormat format = {accelaes::engine_version, false, open, open_graph, bind, run, unbind, close_graph, close};

}  // namespace

extern "C" ACCELAES_API const EngineFormat* accelaes_engine_format() { return &format; }
