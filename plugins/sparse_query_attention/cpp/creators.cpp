// What TensorRT's registries look for in a plugin library. C++ programs load it with IPluginRegistry::loadLibrary, or
// link it and register getCreators' first entry themselves.
#include "plugin.h"

#define ACCELAES_EXPORT extern "C" __attribute__((visibility("default")))

ACCELAES_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { accelaes::setLogger(finder); }

ACCELAES_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& nbCreators) {
    static accelaes::Creator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    nbCreators = 1;
    return creators;
}
