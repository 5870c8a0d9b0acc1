// A library that stands in for TensorRT: its "engines" are ONNX graphs behind a description of their tensors and
// profiles, which ONNX Runtime computes in the memory of tests/native/cuda_on_cpu. It is as strict as TensorRT is about
// profiles, shapes and addresses.
//
// $ACCELAES_REAL_FORMAT: libaccelaes_onnxruntime.so. $ACCELAES_ONNXRUNTIME: libonnxruntime.so.
// $ACCELAES_MEMORY: the libaccelaes_cuda.so whose memory is used.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "accelaes.h"
#include "device.hpp"
#include "engine.hpp"

namespace {

using accelaes::Tensor;
using accelaes::Type;
using nvinfer1::Dims;

nvinfer1::ILogger* logger;

bool complain(const std::string& what) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, what.c_str());
    return false;
}

struct Described {
    std::string name;
    bool input;
    Type type;
    std::vector<std::string> shape;  // numbers, letters, or "M-34"
};

struct Range {
    Dims least, most;
};

// The part of ONNX Runtime that computes.
struct Real {
    const accelaes::EngineFormat* format;
    void (*open_memory)(bool);
    void* engine = nullptr;

    static Real& it() {
        static Real one;
        return one;
    }

   private:
    Real() {
        format = reinterpret_cast<accelaes::EngineEntry>(
            dlsym(dlopen(std::getenv("ACCELAES_REAL_FORMAT"), RTLD_NOW), "accelaes_engine_format"))();
        void* memory = dlopen(std::getenv("ACCELAES_MEMORY"), RTLD_NOW | RTLD_NOLOAD);
        open_memory = reinterpret_cast<void (*)(bool)>(dlsym(memory, "accelaes_open_memory"));
        static accelaes::DeviceFunctions host = {};
        host.kind = "cpu";
        static accelaes::EngineDevice on_host = {&host, nullptr, 0};
        const char* none[] = {nullptr};
        accelaes::EngineError error = {};
        engine = format->open(std::getenv("ACCELAES_ONNXRUNTIME"), none, &on_host, &error);
    }
};

class Engine : public nvinfer1::ICudaEngine {
   public:
    std::vector<Described> tensors;
    std::vector<std::map<std::string, Range>> profiles;
    void* graph = nullptr;

    explicit Engine(const std::string& data) {
        size_t end = data.find("\nend\n");
        if (data.rfind("stand-in ", 0) != 0 || end == std::string::npos) {
            complain("this is no engine");
            return;
        }
        std::istringstream lines(data.substr(0, end + 1));
        for (std::string line; std::getline(lines, line);) read(line);
        auto path = std::filesystem::temp_directory_path() /
                    ("stand-in-" + std::to_string(reinterpret_cast<uintptr_t>(this)) + ".onnx");
        std::ofstream(path, std::ios::binary) << data.substr(end + 5);
        std::vector<const char*> in, out;
        for (const auto& one : tensors) (one.input ? in : out).push_back(one.name.c_str());
        std::string name = path;
        const char* paths[] = {name.c_str()};
        accelaes::GraphFiles files = {paths, 1, in.data(), in.size(), out.data(), out.size()};
        accelaes::EngineError error = {};
        graph = Real::it().format->open_graph(Real::it().engine, &files, 1, &error);
        if (graph == nullptr) complain(error.sentence);
        std::filesystem::remove(path);
    }
    ~Engine() override {
        if (graph != nullptr) Real::it().format->close_graph(graph);
    }
    const Described* find(const std::string& name) const {
        for (const auto& one : tensors) {
            if (one.name == name) return &one;
        }
        return nullptr;
    }
    int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(tensors.size()); }
    const char* getIOTensorName(int32_t index) const noexcept override {
        return tensors[static_cast<size_t>(index)].name.c_str();
    }
    Dims getTensorShape(const char* name) const noexcept override {
        const auto& shape = find(name)->shape;
        Dims made = {static_cast<int32_t>(shape.size()), {}};
        for (size_t axis = 0; axis < shape.size(); ++axis)
            made.d[axis] = std::isdigit(shape[axis][0]) ? std::stoll(shape[axis]) : -1;
        return made;
    }
    nvinfer1::DataType getTensorDataType(const char* name) const noexcept override {
        Type type = find(name)->type;
        return type == Type::i64    ? nvinfer1::DataType::kINT64
               : type == Type::f16  ? nvinfer1::DataType::kHALF
               : type == Type::bf16 ? nvinfer1::DataType::kBF16
                                    : nvinfer1::DataType::kFLOAT;
    }
    int32_t getNbOptimizationProfiles() const noexcept override { return static_cast<int32_t>(profiles.size()); }
    Dims getProfileShape(const char* name, int32_t profile,
                         nvinfer1::OptProfileSelector which) const noexcept override {
        const auto& own = profiles[static_cast<size_t>(profile)];
        auto found = own.find(name);
        if (found == own.end()) return {-1, {}};
        return which == nvinfer1::OptProfileSelector::kMIN ? found->second.least : found->second.most;
    }
    nvinfer1::IExecutionContext* createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy) noexcept override;

   private:
    void read(const std::string& line) {
        std::istringstream words(line);
        std::string kind, word;
        words >> kind;
        if (kind == "stand-in") {
            size_t count = 0;
            words >> count;
            profiles.resize(count);
        } else if (kind == "input" || kind == "output") {
            static const std::map<std::string, Type> types = {
                {"fp32", Type::f32}, {"int64", Type::i64}, {"fp16", Type::f16}, {"bf16", Type::bf16}};
            Described one{"", kind == "input", Type::f32, {}};
            words >> one.name >> word;
            one.type = types.at(word);
            while (words >> word) one.shape.push_back(word);
            tensors.push_back(one);
        } else if (kind == "profile") {
            size_t index = 0;
            std::string name;
            Range range = {};
            words >> index >> name >> range.least.nbDims;
            range.most.nbDims = range.least.nbDims;
            for (Dims* dims : {&range.least, &range.most}) {
                for (int32_t axis = 0; axis < dims->nbDims; ++axis) words >> dims->d[axis];
            }
            profiles[index][name] = range;
        }
    }
};

class Context : public nvinfer1::IExecutionContext {
   public:
    explicit Context(const Engine& engine) : engine_(engine) {}

    bool setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept override {
        profile_ = profile;
        return profile >= 0 && profile < engine_.getNbOptimizationProfiles();
    }
    bool setInputShape(const char* name, const Dims& shape) noexcept override {
        const Described* found = engine_.find(name);
        if (profile_ < 0) return complain("no profile is set");
        if (found == nullptr || !found->input) return complain(std::string(name) + " is no input");
        if (static_cast<size_t>(shape.nbDims) != found->shape.size())
            return complain(std::string(name) + " has other axes");
        auto least = engine_.getProfileShape(name, profile_, nvinfer1::OptProfileSelector::kMIN);
        auto most = engine_.getProfileShape(name, profile_, nvinfer1::OptProfileSelector::kMAX);
        for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
            const std::string& size = found->shape[static_cast<size_t>(axis)];
            if (least.nbDims >= 0 && (shape.d[axis] < least.d[axis] || shape.d[axis] > most.d[axis]))
                return complain(std::string(name) + " isn't within its profile");
            if (std::isdigit(size[0]) && std::stoll(size) != shape.d[axis])
                return complain(std::string(name) + " has another size");
            if (!std::isdigit(size[0])) letters_[size] = shape.d[axis];
        }
        shapes_[name] = shape;
        return true;
    }
    Dims getTensorShape(const char* name) const noexcept override {
        const Described* found = engine_.find(name);
        Dims made = {static_cast<int32_t>(found->shape.size()), {}};
        for (size_t axis = 0; axis < found->shape.size(); ++axis) {
            const std::string& size = found->shape[axis];
            auto letter = letters_.find(size.substr(0, 1));
            int64_t less = size.size() > 2 && size[1] == '-' ? std::stoll(size.substr(2)) : 0;
            made.d[axis] = std::isdigit(size[0])      ? std::stoll(size)
                           : letter == letters_.end() ? -1
                                                      : letter->second - less;
        }
        return made;
    }
    bool setTensorAddress(const char* name, void* data) noexcept override {
        if (data == nullptr || reinterpret_cast<uintptr_t>(data) % 256 != 0)
            return complain(std::string(name) + " starts at an address that TensorRT doesn't take");
        addresses_[name] = data;
        return engine_.find(name) != nullptr;
    }
    bool enqueueV3(cudaStream_t) noexcept override {
        std::vector<Tensor> in, out;
        std::vector<Dims> kept(engine_.tensors.size());
        size_t k = 0;
        for (const auto& one : engine_.tensors) {
            auto address = addresses_.find(one.name);
            if (address == addresses_.end()) return complain(one.name + " has no address");
            auto told = shapes_.find(one.name);  // unless it is fixed
            kept[k] = told == shapes_.end() ? getTensorShape(one.name.c_str()) : told->second;
            for (int32_t axis = 0; axis < kept[k].nbDims; ++axis) {
                if (kept[k].d[axis] < 0) return complain(one.name + " has no shape");
            }
            (one.input ? in : out)
                .push_back({one.name.c_str(), one.type, address->second, kept[k].d, kept[k].nbDims, true});
            ++k;
        }
        accelaes::EngineError error = {};
        auto& real = Real::it();
        real.open_memory(true);
        void* bound = real.format->bind(engine_.graph, in.data(), in.size(), out.data(), out.size(), &error);
        bool good = bound != nullptr && real.format->run(bound, &error);
        if (bound != nullptr) real.format->unbind(bound);
        real.open_memory(false);
        return good || complain(error.sentence);
    }

   private:
    const Engine& engine_;
    int32_t profile_ = -1;
    std::map<std::string, Dims> shapes_;
    std::map<std::string, int64_t> letters_;
    std::map<std::string, void*> addresses_;
};

nvinfer1::IExecutionContext* Engine::createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy) noexcept {
    return new Context(*this);
}

class Registry : public nvinfer1::IPluginRegistry {
    void* loadLibrary(const char* path) noexcept override { return dlopen(path, RTLD_NOW); }
};

class Runtime : public nvinfer1::IRuntime {
   public:
    nvinfer1::ICudaEngine* deserializeCudaEngine(const void* data, size_t size) noexcept override {
        auto made = std::make_unique<Engine>(std::string(static_cast<const char*>(data), size));
        return made->graph == nullptr ? nullptr : made.release();
    }
    nvinfer1::IPluginRegistry& getPluginRegistry() noexcept override { return registry_; }

   private:
    Registry registry_;
};

}  // namespace

extern "C" ACCELAES_API int32_t getInferLibVersion() { return NV_TENSORRT_VERSION; }

extern "C" ACCELAES_API void* createInferRuntime_INTERNAL(void* log, int32_t version) {
    logger = static_cast<nvinfer1::ILogger*>(log);
    if (version != NV_TENSORRT_VERSION) return nullptr;
    return new Runtime;
}
