#include "device.hpp"

#include <dlfcn.h>

#include <cstdlib>

#include "accelaes.h"
#include "failure.hpp"

namespace accelaes {
namespace {

// The functions of `libaccelaes_KIND.so`.
const DeviceFunctions* loaded(const std::string& kind, const std::string& folder) {
    std::string path = folder + "/libaccelaes_" + kind + ".so";
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        throw Failure(ACCELAES_MISSING, "options.device is " + kind + ", and " + path + " can't be loaded (" +
                                            dlerror() +
                                            "); build libaccelaes with -DACCELAES_CUDA=ON, or name the file's folder "
                                            "in options.engines.");
    }
    auto entry = reinterpret_cast<DeviceEntry>(dlsym(handle, "accelaes_device"));
    const DeviceFunctions* functions = entry == nullptr ? nullptr : entry();
    if (functions == nullptr || functions->version != device_version)
        throw Failure(ACCELAES_MISSING, path + " is of another release than libaccelaes; install both from one.");
    return functions;
}

}  // namespace

void fail(const EngineError& error, const std::string& before) {
    std::string said = before + error.sentence;
    while (!said.empty() && (said.back() == '.' || said.back() == ' ')) said.pop_back();
    throw Failure(error.code, said + ".");
}

Device::Device(const std::string& name, void* stream, const std::string& folder) : functions_(host_functions()) {
    auto colon = name.find(':');
    std::string kind = name.substr(0, colon), number = colon == std::string::npos ? "0" : name.substr(colon + 1);
    bool numbered = !number.empty() && number.size() < 4 && number.find_first_not_of("0123456789") == std::string::npos;
    if ((kind != "cpu" && kind != "cuda") || !numbered || (kind == "cpu" && colon != std::string::npos))
        refuse("options.device is \"" + name + "\"; give cpu, cuda or cuda:1, counted from 0.");
    if (kind == "cpu" && stream != nullptr)
        refuse("options.stream was given, and options.device is a CPU, which has none; give cuda, or no stream.");
    if (kind == "cuda") functions_ = loaded(kind, folder);
    index_ = std::atoi(number.c_str());
    EngineError error = {};
    context_ = functions_->open(index_, stream, &error);
    if (context_ == nullptr) fail(error);
}

Device::~Device() { functions_->close(context_); }

void Device::read(void* to, const void* from, size_t bytes) const {
    EngineError error = {};
    if (!functions_->read(context_, to, from, bytes, &error)) fail(error);
}

}  // namespace accelaes
