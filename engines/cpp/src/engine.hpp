// What an engine format's shared object provides: it opens graphs and runs them on tensors where a device has them.
//
// Plain functions and structs, as the two sides may have been compiled apart. A failure is a sentence in `error`.
#pragma once

#include <cstddef>
#include <cstring>

#include "mechanisms.hpp"

namespace accelaes {

// A graph on disk: its own file first, then what lies beside it; and its tensors' names in its own order.
struct GraphFiles {
    const char* const* paths;
    size_t count;
    const char* const* inputs;
    size_t in;
    const char* const* outputs;
    size_t out;
};

// The device that its graphs run on.
struct EngineDevice {
    const DeviceFunctions* functions;
    void* context;
    int index;

    bool on_host() const { return std::strcmp(functions->kind, "cpu") == 0; }
};

struct EngineFormat {
    int version;
    bool runs_code;  // whether its graphs are native code
    // `built_with`: names and values by turns, what the bundle was built with; NULL ends them.
    void* (*open)(const char* library, const char* const* built_with, const EngineDevice* device, EngineError* error);
    // `threads` for one call of it; 0: one per core.
    void* (*open_graph)(void* engine, const GraphFiles* files, int threads, EngineError* error);
    // For calls of these tensors, which stay where they are; outputs of no numbers aren't fetched.
    void* (*bind)(void* graph, const Tensor* inputs, size_t in, const Tensor* outputs, size_t out, EngineError* error);
    bool (*run)(void* bound, EngineError* error);
    void (*unbind)(void* bound);
    void (*close_graph)(void* graph);
    void (*close)(void* engine);
};

constexpr int engine_version = 4;
using EngineEntry = const EngineFormat* (*)();  // exported as `accelaes_engine_format`

}  // namespace accelaes
