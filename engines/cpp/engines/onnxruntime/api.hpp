// The part of ONNX Runtime's C API that is called, by its place in the table. The table only ever grows at its end, so
// these places hold for every release since 1.10 (1.16 for CUDA's); wheels bring the library without headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

struct Status;
struct Env;
struct Session;
struct SessionOptions;
struct MemoryInfo;
struct Value;
struct IoBinding;
struct RunOptions;
struct CudaOptions;

struct Base {
    const void* const* (*get_api)(uint32_t version);
    const char* (*version)();
};

constexpr uint32_t api_version = 10;
constexpr uint32_t cuda_api_version = 16;  // that a stream can be given to

enum Place : size_t {
    get_error_message = 2,
    create_env = 3,
    create_session = 7,
    create_session_options = 10,
    set_graph_optimization_level = 23,
    set_intra_op_threads = 24,
    create_run_options = 39,
    create_tensor_with_data = 49,
    create_memory_info = 68,
    release_env = 92,
    release_status = 93,
    release_memory_info = 94,
    release_session = 95,
    release_value = 96,
    release_run_options = 97,
    release_session_options = 100,
    add_session_config_entry = 130,
    run_with_binding = 133,
    create_io_binding = 134,
    release_io_binding = 135,
    bind_input = 136,
    bind_output = 137,
    add_run_config_entry = 165,
    append_cuda_provider = 204,
    create_cuda_provider_options = 205,
    update_cuda_provider_options = 206,
    release_cuda_provider_options = 208,
    update_cuda_provider_options_with_value = 263,
};

}  // namespace ort
