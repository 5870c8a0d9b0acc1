// Stands in for NVIDIA's header of this name: what engines/cpp/engines/tensorrt calls of it, by the names and types of
// TensorRT 10's documentation. Nothing here is NVIDIA's, and no engine of theirs runs with it.
#pragma once

#include <cstddef>
#include <cstdint>

#define NV_TENSORRT_MAJOR 1
#define NV_TENSORRT_VERSION 10701

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace nvinfer1 {

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kBF16 = 7, kINT64 = 8 };
enum class OptProfileSelector : int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
enum class ExecutionContextAllocationStrategy : int32_t { kSTATIC = 0, kON_PROFILE_CHANGE = 1 };

struct Dims {
    int32_t nbDims;
    int64_t d[8];
};

class ILogger {
   public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, const char* message) noexcept = 0;
    virtual ~ILogger() = default;
};

class IExecutionContext {
   public:
    virtual ~IExecutionContext() = default;
    virtual bool setOptimizationProfileAsync(int32_t profile, cudaStream_t stream) noexcept = 0;
    virtual bool setInputShape(const char* name, const Dims& shape) noexcept = 0;
    virtual Dims getTensorShape(const char* name) const noexcept = 0;
    virtual bool setTensorAddress(const char* name, void* data) noexcept = 0;
    virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
};

class ICudaEngine {
   public:
    virtual ~ICudaEngine() = default;
    virtual int32_t getNbIOTensors() const noexcept = 0;
    virtual const char* getIOTensorName(int32_t index) const noexcept = 0;
    virtual Dims getTensorShape(const char* name) const noexcept = 0;  // -1 where it varies
    virtual DataType getTensorDataType(const char* name) const noexcept = 0;
    virtual int32_t getNbOptimizationProfiles() const noexcept = 0;
    virtual Dims getProfileShape(const char* name, int32_t profile, OptProfileSelector which) const noexcept = 0;
    virtual IExecutionContext* createExecutionContext(
        ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC) noexcept = 0;
};

class IPluginRegistry {
   public:
    using PluginLibraryHandle = void*;
    virtual ~IPluginRegistry() = default;
    virtual PluginLibraryHandle loadLibrary(const char* path) noexcept = 0;
};

class IRuntime {
   public:
    virtual ~IRuntime() = default;
    virtual ICudaEngine* deserializeCudaEngine(const void* data, size_t size) noexcept = 0;
    virtual IPluginRegistry& getPluginRegistry() noexcept = 0;
};

}  // namespace nvinfer1
