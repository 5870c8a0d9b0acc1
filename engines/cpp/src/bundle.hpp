// An opened bundle: its manifest, and its engine, programs and components in the format's shared object.
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
    // The graph of a preset's program or of a component, opened when it is first asked for. Programs are small: handing
    // parts of them to other threads would cost more than it saves.
    const Graph& program(const Program& program) const { return graph(program, 1); }
    const Graph& component(const Program& component) const { return graph(component, threads_); }
    const Graph& without(const BlockRange& range) const { return graph(range.engine, threads_); }

    // The path of a file that the manifest lists; refused for another.
    std::string file(const std::string& name) const;
    // Made when it is first asked for: whoever gives embeddings needs none.
    const PromptReader& prompts() const;

   private:
    void open_all() const;
    const Graph& graph(const Program& program, int threads) const;
    std::unique_ptr<const Graph> opened(const std::vector<std::string>& files, const std::vector<Spec>& inputs,
                                        const std::vector<Spec>& outputs, int threads) const;

    std::string folder_;
    int threads_;
    std::shared_ptr<const Format> format_;
    mutable std::mutex opening_, reading_;
    mutable std::map<std::string, std::unique_ptr<const Graph>> graphs_;  // by file
    mutable std::unique_ptr<const PromptReader> prompts_;
};

}  // namespace accelaes
