#include "plugin.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

namespace accelaes {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr std::int32_t kInputs = 5;  // q, k, v, k_bg, v_bg; a bias is the sixth
constexpr std::int32_t kFailed = -1;

nvinfer1::ILoggerFinder* gLoggerFinder = nullptr;

std::uint32_t dtypeNumber(DataType type) noexcept { return type == DataType::kHALF ? 0 : 1; }

bool headDimAllowed(std::int64_t headDim) noexcept { return headDim >= 32 && headDim <= 256 && headDim % 8 == 0; }

}  // namespace

void setLogger(nvinfer1::ILoggerFinder* finder) noexcept { gLoggerFinder = finder; }

void report(char const* message) noexcept {
    if (gLoggerFinder != nullptr) {
        if (auto* const logger = gLoggerFinder->findLogger()) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, message);
        }
    }
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
    auto* const copy = new (std::nothrow) Plugin(mScale, mTile);
    if (copy != nullptr) {
        copy->mKind = mKind;
    }
    return copy;
}

std::int32_t Plugin::getOutputDataTypes(
    DataType* outputTypes, std::int32_t, DataType const* inputTypes, std::int32_t) const noexcept {
    outputTypes[0] = inputTypes[0];
    return 0;
}

std::int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, std::int32_t, nvinfer1::DimsExprs const*,
    std::int32_t, nvinfer1::DimsExprs* outputs, std::int32_t, nvinfer1::IExprBuilder&) noexcept {
    outputs[0] = inputs[0];
    return 0;
}

bool Plugin::supportsFormatCombination(std::int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut,
    std::int32_t nbInputs, std::int32_t) noexcept {
    auto const& described = inOut[pos].desc;
    return (nbInputs == kInputs || nbInputs == kInputs + 1) && described.format == nvinfer1::TensorFormat::kLINEAR
        && (described.type == DataType::kHALF || described.type == DataType::kBF16)
        && described.type == inOut[0].desc.type;
}

std::int32_t Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, std::int32_t nbInputs,
    nvinfer1::DynamicPluginTensorDesc const*, std::int32_t) noexcept {
    auto const headDim = in[0].desc.dims.d[3];
    if (!headDimAllowed(headDim)) {
        report("The attention kernel takes head sizes from 32 to 256 in steps of 8.");
        return kFailed;
    }
    mKind = {dtypeNumber(in[0].desc.type), static_cast<std::uint32_t>(headDim), nbInputs > kInputs ? 1U : 0U};
    return 0;
}

std::size_t Plugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, std::int32_t,
    nvinfer1::DynamicPluginTensorDesc const*, std::int32_t) const noexcept {
    auto const& most = inputs[0].max;
    return scratchBytes(most.d[0], most.d[1], most.d[2]);
}

std::int32_t Plugin::getNbTactics() noexcept { return static_cast<std::int32_t>(candidatesHere(mKind).size()); }

std::int32_t Plugin::getValidTactics(std::int32_t* tactics, std::int32_t nbTactics) noexcept {
    auto const found = candidatesHere(mKind);
    for (std::int32_t i = 0; i < nbTactics && i < static_cast<std::int32_t>(found.size()); ++i) {
        tactics[i] = static_cast<std::int32_t>(found[static_cast<std::size_t>(i)]->tile);
    }
    return 0;
}

std::int32_t Plugin::setTactic(std::int32_t tactic) noexcept {
    if (tactic != 0) {
        mTile = tactic;
        mRow = nullptr;
    }
    return 0;
}

std::int32_t Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, std::int32_t nbInputs,
    nvinfer1::PluginTensorDesc const*, std::int32_t) noexcept {
    auto const& q = in[0].dims;
    auto const& k = in[1].dims;
    auto const& background = in[3].dims;
    auto const same = [](nvinfer1::Dims const& a, nvinfer1::Dims const& b) {
        return a.nbDims == 4 && b.nbDims == 4 && std::equal(a.d, a.d + 4, b.d);
    };
    if (q.nbDims != 4 || !same(k, in[2].dims) || !same(background, in[4].dims) || k.d[0] != q.d[0] || k.d[3] != q.d[3]
        || background.d[0] != k.d[0] || background.d[1] != k.d[1] || background.d[3] != k.d[3] || k.d[1] == 0
        || q.d[1] % k.d[1] != 0) {
        report("The attention's queries don't fit its keys and values.");
        return kFailed;
    }
    mSizes = {q.d[0], q.d[1], k.d[1], q.d[2], k.d[2], background.d[2], q.d[3], 1, 1};
    if (nbInputs > kInputs) {
        auto const& bias = in[kInputs].dims;
        bool const fits = bias.nbDims == 4 && (bias.d[0] == 1 || bias.d[0] == q.d[0]) && bias.d[1] == 1
            && (bias.d[2] == 1 || bias.d[2] == q.d[2]) && bias.d[3] == k.d[2] + background.d[2];
        if (!fits) {
            report("The attention's bias must be [1 or B, 1, 1 or nq, nk + m].");
            return kFailed;
        }
        mSizes.biasRows = bias.d[0];
        mSizes.biasLines = bias.d[2];
    }
    Kind const kind{
        dtypeNumber(in[0].type), static_cast<std::uint32_t>(q.d[3]), nbInputs > kInputs ? 1U : 0U};
    if (kind.dtype != mKind.dtype || kind.headDim != mKind.headDim || kind.biased != mKind.biased) {
        mKind = kind;
        mRow = nullptr;
    }
    return 0;
}

std::int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const*, nvinfer1::PluginTensorDesc const*,
    void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    if (mRow == nullptr) {
        auto const found = candidatesHere(mKind);
        if (found.empty()) {
            auto const message = "libaccelaes_plugin.so has no attention kernel for this GPU and head size "
                + std::to_string(mKind.headDim)
                + "; build it with cubins for both (accelaes-export plugin build --arch ... --head-dim ...).";
            report(message.c_str());
            return kFailed;
        }
        auto const tile = static_cast<std::uint32_t>(mTile);
        auto const chosen = std::find_if(found.begin(), found.end(), [tile](Row const* row) { return row->tile == tile; });
        mRow = chosen == found.end() ? found.front() : *chosen;
    }
    void const* const bias = mKind.biased != 0 ? inputs[kInputs] : nullptr;
    auto const problem = launch(*mRow, mSizes, mScale,
        {inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], bias, outputs[0]}, workspace,
        reinterpret_cast<CUstream>(stream));
    if (!problem.empty()) {
        report(problem.c_str());
        return kFailed;
    }
    return 0;
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

nvinfer1::PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
    mFields = {PluginField{kScale, &mScale, PluginFieldType::kFLOAT32, 1},
        PluginField{kTile, &mTile, PluginFieldType::kINT32, 1}};
    mCollection = {static_cast<std::int32_t>(mFields.size()), mFields.data()};
    return &mCollection;
}

Creator::Creator() noexcept
    : mFields{PluginField{kScale, nullptr, PluginFieldType::kFLOAT32, 1},
        PluginField{kTile, nullptr, PluginFieldType::kINT32, 1}},
      mCollection{static_cast<std::int32_t>(mFields.size()), mFields.data()} {}

nvinfer1::IPluginV3* Creator::createPlugin(nvinfer1::AsciiChar const*, nvinfer1::PluginFieldCollection const* fields,
    nvinfer1::TensorRTPhase) noexcept {
    float scale = 0;
    bool scaled = false;
    std::int32_t tile = 0;
    for (std::int32_t i = 0; i < fields->nbFields; ++i) {
        auto const& field = fields->fields[i];
        if (field.data == nullptr || field.length != 1) {
            continue;
        }
        if (std::strcmp(field.name, kScale) == 0 && field.type == PluginFieldType::kFLOAT32) {
            std::memcpy(&scale, field.data, sizeof(scale));
            scaled = true;
        } else if (std::strcmp(field.name, kTile) == 0 && field.type == PluginFieldType::kINT32) {
            std::memcpy(&tile, field.data, sizeof(tile));
        }
    }
    if (!scaled) {
        report("The attention layer has no attribute 'scale'.");
        return nullptr;
    }
    return new (std::nothrow) Plugin(scale, tile);
}

}  // namespace accelaes
