// Makes a layer through the library's public entry points, as TensorRT does, and enqueues calls with made-up addresses.
#include <NvInferRuntime.h>

#include <dlfcn.h>

#include <cstdio>
#include <vector>

using namespace nvinfer1;

namespace {

struct Logger final : ILogger {
    void log(Severity, char const* message) noexcept override { std::printf("log %s\n", message); }
};

struct Finder final : ILoggerFinder {
    Logger logger;
    ILogger* findLogger() override { return &logger; }
};

PluginTensorDesc described(std::vector<std::int64_t> const& shape, DataType type) {
    PluginTensorDesc made{};
    made.dims.nbDims = static_cast<std::int32_t>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) {
        made.dims.d[i] = shape[i];
    }
    made.type = type;
    made.format = TensorFormat::kLINEAR;
    return made;
}

void call(IPluginCreatorV3One& creator, std::int32_t tile, std::vector<std::vector<std::int64_t>> const& shapes,
    DataType type = DataType::kHALF) {
    float const scale = 0.125F;
    PluginField const given[] = {{"scale", &scale, PluginFieldType::kFLOAT32, 1}, {"tile", &tile, PluginFieldType::kINT32, 1}};
    PluginFieldCollection const fields{2, given};
    IPluginV3* const plugin = creator.createPlugin("a", &fields, TensorRTPhase::kRUNTIME);
    auto* const runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    auto* const build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    std::vector<PluginTensorDesc> in;
    std::vector<DynamicPluginTensorDesc> ranges;
    std::vector<void const*> inputs;
    for (auto const& shape : shapes) {
        in.push_back(described(shape, type));
        ranges.push_back({in.back(), in.back().dims, in.back().dims, in.back().dims});
        inputs.push_back(reinterpret_cast<void const*>(100 + in.size()));
    }
    void* outputs[] = {reinterpret_cast<void*>(200)};
    auto const count = static_cast<std::int32_t>(in.size());
    bool formats = true;
    for (std::int32_t i = 0; i < count; ++i) {
        formats = formats && build->supportsFormatCombination(i, ranges.data(), count, 1);
    }
    auto const configured = build->configurePlugin(ranges.data(), count, ranges.data(), 1);
    std::vector<std::int32_t> tactics(static_cast<std::size_t>(build->getNbTactics()));
    build->getValidTactics(tactics.data(), static_cast<std::int32_t>(tactics.size()));
    std::printf("formats %d configured %d workspace %zu tactics", formats, configured,
        build->getWorkspaceSize(ranges.data(), count, ranges.data(), 1));
    for (auto const tactic : tactics) {
        std::printf(" %d", tactic);
    }
    std::printf("\n");
    auto const changed = runtime->onShapeChange(in.data(), count, in.data(), 1);
    if (changed == 0) {
        IPluginV3* const attached = runtime->attachToContext(nullptr);
        auto* const running = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
        running->onShapeChange(in.data(), count, in.data(), 1);
        auto const code = running->enqueue(in.data(), in.data(), inputs.data(), outputs, reinterpret_cast<void*>(300),
            reinterpret_cast<cudaStream_t>(400));
        std::printf("enqueue %d\n", code);
        auto const* fieldsOut = running->getFieldsToSerialize();
        for (std::int32_t i = 0; i < fieldsOut->nbFields; ++i) {
            auto const& field = fieldsOut->fields[i];
            std::printf("field %s %d %d %08x\n", field.name, static_cast<int>(field.type), field.length,
                *static_cast<unsigned const*>(field.data));
        }
        delete attached;
    } else {
        std::printf("refused\n");
    }
    delete plugin;
}

}  // namespace

int main(int, char** arguments) {
    void* const library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::printf("%s\n", dlerror());
        return 1;
    }
    auto const setLoggerFinder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
    auto const getCreators = reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(library, "getCreators"));
    Finder finder;
    setLoggerFinder(&finder);
    std::int32_t count = 0;
    auto& creator = *static_cast<IPluginCreatorV3One*>(getCreators(count)[0]);
    std::printf("creators %d %s %s [%s]\n", count, creator.getPluginName(), creator.getPluginVersion(), creator.getPluginNamespace());

    std::vector<std::vector<std::int64_t>> const plain{{2, 4, 5, 64}, {2, 2, 13, 64}, {2, 2, 13, 64}, {2, 2, 7, 64}, {2, 2, 7, 64}};
    auto const with = [&plain](std::vector<std::int64_t> const& bias) {
        auto shapes = plain;
        shapes.push_back(bias);
        return shapes;
    };
    call(creator, 0, plain);
    call(creator, 0x66330, plain);  // the second tactic
    call(creator, 0, with({2, 1, 5, 20}));
    call(creator, 0, with({1, 1, 1, 20}));
    call(creator, 0, with({2, 1, 5, 19}));
    call(creator, 0, {{2, 4, 5, 128}, {2, 2, 13, 128}, {2, 2, 13, 128}, {2, 2, 7, 128}, {2, 2, 7, 128}});
    call(creator, 0, {{2, 4, 5, 64}, {2, 2, 13, 64}, {2, 2, 12, 64}, {2, 2, 7, 64}, {2, 2, 7, 64}});
    call(creator, 0, plain, DataType::kFLOAT);
    std::printf("no scale: %d\n", creator.createPlugin("a", creator.getFieldNames(), TensorRTPhase::kBUILD) == nullptr);
    return 0;
}
