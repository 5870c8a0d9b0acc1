// An opened bundle: its manifest, and its engine and programs in the format's shared object. Immutable once opened.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "accelaes.h"
#include "device.hpp"
#include "engine.hpp"
#include "manifest.hpp"

namespace accelaes {

// The shared object of an engine format, and the library behind it.
class Format {
   public:
    // `allowed`: the bundle's native code may be run.
    Format(const Manifest& manifest, const Device& device, const std::string& folder, const char* library,
           bool allowed);
    ~Format();
    Format(const Format&) = delete;
    Format& operator=(const Format&) = delete;

    const EngineFormat* functions = nullptr;
    void* engine = nullptr;
};

class Graph {
   public:
    Graph(std::shared_ptr<const Format> format, const std::vector<std::string>& paths, const std::vector<Spec>& inputs,
          const std::vector<Spec>& outputs, int threads);
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

   private:
    friend class Bound;
    std::shared_ptr<const Format> format_;
    void* graph_ = nullptr;
};

// A graph with its tensors, which stay where they are from call to call. Lives no longer than the graph.
class Bound {
   public:
    Bound(const Graph& graph, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs);
    ~Bound();
    Bound(const Bound&) = delete;
    Bound& operator=(const Bound&) = delete;

    void run() const;

   private:
    const EngineFormat& functions_;
    void* bound_;
};

class PromptReader;

class Bundle {
   public:
    Bundle(const std::string& folder, const accelaes_open_options& options);
    ~Bundle();

    Manifest manifest;
    Device device;
    std::unique_ptr<const Graph> engine;

    // The preset called `name`, or the first.
    const Preset& preset(const char* name) const;
    // A preset's programs by name, opened with the bundle.
    const std::map<std::string, const Graph*>& programs(const Preset& preset) const {
        return programs_.at(preset.name);
    }

    // A component's graph, opened with the bundle.
    const Graph& graph(const Program& component) const { return *graphs_.at(component.files[0]); }

    // The path of a file that the manifest lists; refused for another.
    std::string file(const std::string& name) const;
    // Made when it is first asked for: whoever gives embeddings needs none.
    const PromptReader& prompts() const;

   private:
    std::string folder_;
    std::map<std::string, std::unique_ptr<const Graph>> graphs_;  // by file
    std::map<std::string, std::map<std::string, const Graph*>> programs_;
    mutable std::mutex reading_;
    mutable std::unique_ptr<const PromptReader> prompts_;
};

}  // namespace accelaes
