#include "bundle.hpp"

#include <dlfcn.h>
#include <sys/stat.h>

#include <cctype>

#include "failure.hpp"
#include "prompts.hpp"
#include "sha256.hpp"

namespace accelaes {
namespace {

// The folder this library lies in.
std::string own_folder() {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(&accelaes_open), &info) == 0 || info.dli_fname == nullptr) return ".";
    std::string path = info.dli_fname;
    auto slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

// Where engine formats and devices lie.
std::string formats_folder(const accelaes_open_options& options) {
    return options.engines == nullptr ? own_folder() : options.engines;
}

// Whether a name stays in its folder: relative, printable, without "..", "." or empty parts.
bool is_plain(const std::string& name) {
    std::string part;
    for (size_t k = 0; k <= name.size(); ++k) {
        if (k < name.size() && name[k] != '/') {
            unsigned char c = static_cast<unsigned char>(name[k]);
            if (c < 32 || c == 127 || c == '\\') return false;
            part += name[k];
            continue;
        }
        if (part.empty() || part == "." || part == "..") return false;
        part.clear();
    }
    return name != "manifest.json" && name != "manifest.sig";
}

void check_files(const std::string& folder, const std::vector<File>& files, bool hashed) {
    for (const auto& file : files) {
        if (!is_plain(file.name))
            refuse("The manifest of " + folder + " names a file outside the bundle; nothing was read.");
        std::string path = folder + "/" + file.name;
        struct stat status;
        if (lstat(path.c_str(), &status) != 0)
            refuse("Bundle " + folder + " lacks " + file.name + "; copy it again or build it again.");
        if (!S_ISREG(status.st_mode)) refuse("Bundle " + folder + ": " + file.name + " is not a regular file.");
        auto size = static_cast<uint64_t>(status.st_size);
        if (size != file.size) {
            refuse("Bundle " + folder + ": " + file.name + (size < file.size ? " is truncated: " : " is altered: ") +
                   std::to_string(size) + " bytes, and the manifest says " + std::to_string(file.size) +
                   "; copy it again or build it again.");
        }
        if (hashed && sha256_of(path) != file.sha256) {
            refuse("Bundle " + folder + ": " + file.name +
                   " was altered: its SHA-256 is not the manifest's; copy it again or build it again.");
        }
    }
}

}  // namespace

Format::Format(const Manifest& manifest, const Device& device, const std::string& folder, const char* library,
               bool allowed) {
    const std::string& backend = manifest.backend;
    for (char c : backend) {
        if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-')
            refuse("The bundle's backend has no name; build it again.");
    }
    std::string path = folder + "/libaccelaes_" + backend + ".so";
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        throw Failure(ACCELAES_MISSING, "The bundle's engine is " + backend + ", and " + path + " can't be loaded (" +
                                            dlerror() + "); put it there, or name its folder in options.engines.");
    }
    auto entry = reinterpret_cast<EngineEntry>(dlsym(handle, "accelaes_engine_format"));
    functions = entry == nullptr ? nullptr : entry();
    if (functions == nullptr || functions->version != engine_version) {
        throw Failure(ACCELAES_MISSING, path + " is of another release than libaccelaes; install both from one.");
    }
    if (functions->runs_code && !allowed) {
        refuse("The bundle's engine is native code (" + backend +
               "), which is run where options.allow_code is 1 alone; set it for bundles whose maker you trust.");
    }
    std::vector<const char*> built_with;
    for (const auto& [package, version] : manifest.built_with) {
        built_with.push_back(package.c_str());
        built_with.push_back(version.c_str());
    }
    built_with.push_back(nullptr);
    EngineError error = {};
    EngineDevice place = {device.functions(), device.context(), device.index()};
    engine = functions->open(library, built_with.data(), &place, &error);
    if (engine == nullptr) fail(error);
}

Format::~Format() { functions->close(engine); }

Graph::Graph(std::shared_ptr<const Format> format, const std::vector<std::string>& paths,
             const std::vector<Spec>& inputs, const std::vector<Spec>& outputs, int threads)
    : format_(std::move(format)) {
    std::vector<const char*> files, given, made;
    for (const auto& path : paths) files.push_back(path.c_str());
    for (const auto& spec : inputs) given.push_back(spec.name.c_str());
    for (const auto& spec : outputs) made.push_back(spec.name.c_str());
    GraphFiles all = {files.data(), files.size(), given.data(), given.size(), made.data(), made.size()};
    EngineError error = {};
    graph_ = format_->functions->open_graph(format_->engine, &all, threads, &error);
    if (graph_ == nullptr) fail(error, paths[0] + " can't be opened. ");
}

Graph::~Graph() { format_->functions->close_graph(graph_); }

Bound::Bound(const Graph& graph, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs)
    : functions_(*graph.format_->functions) {
    EngineError error = {};
    bound_ = functions_.bind(graph.graph_, inputs.data(), inputs.size(), outputs.data(), outputs.size(), &error);
    if (bound_ == nullptr) fail(error);
}

Bound::~Bound() { functions_.unbind(bound_); }

void Bound::run() const {
    EngineError error = {};
    if (!functions_.run(bound_, &error)) fail(error);
}

Bundle::Bundle(const std::string& folder, const accelaes_open_options& options)
    : manifest(read_manifest(folder)),
      device(options.device == nullptr ? "cpu" : options.device, options.stream, formats_folder(options)),
      folder_(folder),
      threads_(options.threads) {
    check_files(folder, manifest.files, !options.skip_hashes);
    format_ = std::make_shared<const Format>(manifest, device, formats_folder(options), options.library,
                                             options.allow_code != 0);
    engine = opened(manifest.engine_files, manifest.inputs, manifest.outputs, threads_);
    // Native code is loaded while the hashes that were just compared still hold.
    if (format_->functions->runs_code) open_all();
}

void Bundle::open_all() const {
    for (const auto& preset : manifest.presets) {
        for (const auto& [name, own] : preset.programs) program(own);
    }
    for (const auto& range : manifest.ranges) without(range);
    for (const auto& encoder : manifest.encoders) component(encoder.graph);
    if (manifest.conditioned) component(*manifest.conditioned);
    if (manifest.vae) {
        component(manifest.vae->latents);
        component(manifest.vae->decoder);
    }
}

std::unique_ptr<const Graph> Bundle::opened(const std::vector<std::string>& files, const std::vector<Spec>& inputs,
                                            const std::vector<Spec>& outputs, int threads) const {
    std::vector<std::string> paths;
    for (const auto& name : files) paths.push_back(file(name));
    return std::make_unique<const Graph>(format_, paths, inputs, outputs, threads);
}

const Graph& Bundle::graph(const Program& program, int threads) const {
    std::lock_guard<std::mutex> lock(opening_);
    auto& own = graphs_[program.files[0]];
    if (own == nullptr) own = opened(program.files, program.inputs, program.outputs, threads);
    return *own;
}

Bundle::~Bundle() = default;

std::string Bundle::file(const std::string& name) const {
    for (const auto& one : manifest.files) {
        if (one.name == name) return folder_ + "/" + name;
    }
    refuse("The manifest of " + folder_ + " lists " + name + " without its hash; build the bundle again.");
}

const PromptReader& Bundle::prompts() const {
    std::lock_guard<std::mutex> lock(reading_);
    if (prompts_ == nullptr) prompts_ = std::make_unique<const PromptReader>(*this);
    return *prompts_;
}

const Preset& Bundle::preset(const char* name) const {
    if (manifest.presets.empty()) {
        refuse("Bundle " + folder_ +
               " has no presets; build it again with --presets, such as --presets dense,accelaes.");
    }
    if (name == nullptr) return manifest.presets.front();
    std::string there;
    for (const auto& preset : manifest.presets) {
        if (preset.name == name) return preset;
        there += (there.empty() ? "" : ", ") + preset.name;
    }
    refuse("Bundle " + folder_ + " has no preset \"" + name + "\"; it has " + there + ": take one of them.");
}

}  // namespace accelaes
