// The layer accelaes::SparseQueryAttention: name, version, namespace and fields are those of tensorrt_plugin.py.
#pragma once

#include "launch.h"

#include <NvInferRuntime.h>

#include <array>

namespace accelaes {

constexpr char kName[] = "SparseQueryAttention";
constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "";
constexpr char kScale[] = "scale";
constexpr char kTile[] = "tile";

// Tell TensorRT's log; does nothing before the registry has given this library a logger.
void report(char const* message) noexcept;
void setLogger(nvinfer1::ILoggerFinder* finder) noexcept;

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
public:
    // tile: a code of tiles.py; 0 leaves the choice to the table, on the GPU it runs on.
    Plugin(float scale, std::int32_t tile) noexcept : mScale(scale), mTile(tile) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    char const* getPluginName() const noexcept override { return kName; }
    char const* getPluginVersion() const noexcept override { return kVersion; }
    char const* getPluginNamespace() const noexcept override { return kNamespace; }

    std::int32_t getNbOutputs() const noexcept override { return 1; }
    std::int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, std::int32_t nbOutputs,
        nvinfer1::DataType const* inputTypes, std::int32_t nbInputs) const noexcept override;
    std::int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, std::int32_t nbInputs,
        nvinfer1::DimsExprs const* shapeInputs, std::int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs,
        std::int32_t nbOutputs, nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    bool supportsFormatCombination(std::int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut,
        std::int32_t nbInputs, std::int32_t nbOutputs) noexcept override;
    std::int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, std::int32_t nbOutputs) noexcept override;
    std::size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, std::int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* outputs, std::int32_t nbOutputs) const noexcept override;
    std::int32_t getNbTactics() noexcept override;
    std::int32_t getValidTactics(std::int32_t* tactics, std::int32_t nbTactics) noexcept override;

    std::int32_t setTactic(std::int32_t tactic) noexcept override;
    std::int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t nbInputs,
        nvinfer1::PluginTensorDesc const* out, std::int32_t nbOutputs) noexcept override;
    std::int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    float mScale;
    std::int32_t mTile;
    Kind mKind{};
    Sizes mSizes{};
    Row const* mRow = nullptr;  // chosen for mKind on the GPU at hand
    std::array<nvinfer1::PluginField, 2> mFields{};
    nvinfer1::PluginFieldCollection mCollection{};
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    Creator() noexcept;
    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* name, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase phase) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &mCollection; }
    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return kName; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    std::array<nvinfer1::PluginField, 2> mFields;
    nvinfer1::PluginFieldCollection mCollection;
};

}  // namespace accelaes
