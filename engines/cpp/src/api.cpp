// The boundary: no exception and no C++ type crosses it.
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "accelaes.h"
#include "bundle.hpp"
#include "failure.hpp"
#include "run.hpp"
#include "text/characters.hpp"

// What callers have pointers of, empty: what lies behind them is no part of the ABI.
struct accelaes_status {};
struct accelaes_bundle {};
struct accelaes_run {};

namespace {

struct Status : accelaes_status {
    int code;
    std::string sentence;

    Status(int of, std::string said) : code(of), sentence(std::move(said)) {}
};

struct OpenBundle : accelaes_bundle {
    std::shared_ptr<const accelaes::Bundle> it;

    explicit OpenBundle(std::shared_ptr<const accelaes::Bundle> opened) : it(std::move(opened)) {}
};

struct BegunRun : accelaes_run {
    accelaes::Run it;

    BegunRun(std::shared_ptr<const accelaes::Bundle> bundle, accelaes::RunPlan plan)
        : it(std::move(bundle), std::move(plan)) {}
};

const Status* behind(const accelaes_status* status) { return static_cast<const Status*>(status); }
const std::shared_ptr<const accelaes::Bundle>& behind(const accelaes_bundle* bundle) {
    return static_cast<const OpenBundle*>(bundle)->it;
}
accelaes::Run& behind(accelaes_run* run) { return static_cast<BegunRun*>(run)->it; }
const accelaes::Run& behind(const accelaes_run* run) { return static_cast<const BegunRun*>(run)->it; }

accelaes_status* status_of(int code, const char* sentence) {
    try {
        return new Status(code, accelaes::readable(sentence));
    } catch (...) {
        static Status no_memory(ACCELAES_FAILED, "");  // not freed, and never changed
        return &no_memory;
    }
}

template <typename Work>
accelaes_status* guarded(Work work) {
    try {
        work();
        return nullptr;
    } catch (const accelaes::Failure& failure) {
        return status_of(failure.code, failure.sentence.c_str());
    } catch (const std::bad_alloc&) {
        return status_of(ACCELAES_FAILED,
                         "There is not enough memory; close other programs, or make fewer images at once.");
    } catch (const std::exception& error) {
        return status_of(ACCELAES_FAILED, (std::string("unexpected: ") + error.what()).c_str());
    } catch (...) {
        return status_of(ACCELAES_FAILED, "unexpected: an error without words.");
    }
}

// What a look at a device's memory finds; null where the device has failed, which the next step says.
template <typename Look>
auto looked_at(Look look) -> decltype(look()) {
    try {
        return look();
    } catch (...) {
        return nullptr;
    }
}

// A struct of the caller's, which may be of an older or newer release: what both know of it, the rest zero.
template <typename Options>
Options known(const Options* given, const char* name) {
    Options options = {};
    if (given == nullptr) return options;
    if (given->size < sizeof(size_t) || given->size > 4096)
        accelaes::refuse(std::string(name) + ".size is not the struct's size; set it to sizeof.");
    std::memcpy(&options, given, given->size < sizeof options ? given->size : sizeof options);
    return options;
}

template <typename Result>
void hand_over(Result* to, const Result& found, size_t size) {
    std::memcpy(to, &found, size < sizeof found ? size : sizeof found);
    to->size = size;
}

// An array of the caller's structs, which lie one behind another, as large as the caller's header has them.
template <typename Struct>
std::vector<Struct> listed(const Struct* first, size_t count, const char* name) {
    if (count > 4096) accelaes::refuse(std::to_string(count) + " " + name + "s were given; 4096 are the most.");
    std::vector<Struct> own;
    if (count == 0) return own;
    if (first == nullptr) accelaes::refuse(std::string("The list of ") + name + "s is NULL; give one.");
    const char* at = reinterpret_cast<const char*>(first);
    for (size_t k = 0; k < count; ++k, at += first->size)
        own.push_back(known(reinterpret_cast<const Struct*>(at), name));
    return own;
}

void require(const void* given, const char* what) {
    if (given == nullptr) accelaes::refuse(std::string(what) + " is NULL; give one.");
}

}  // namespace

extern "C" {

int accelaes_status_code(const accelaes_status* status) {
    return status == nullptr ? ACCELAES_GOOD : behind(status)->code;
}

const char* accelaes_status_sentence(const accelaes_status* status) {
    return status == nullptr ? "" : behind(status)->sentence.c_str();
}

void accelaes_status_free(accelaes_status* status) {
    if (status != nullptr && !behind(status)->sentence.empty()) delete behind(status);
}

accelaes_status* accelaes_open(const char* folder, const accelaes_open_options* given, accelaes_bundle** bundle) {
    return guarded([&] {
        require(folder, "The folder");
        require(bundle, "The place for the bundle");
        *bundle = nullptr;
        auto options = known(given, "options");
        if (options.threads < 0)
            accelaes::refuse("options.threads is negative; give a number of threads, or 0 for one per core.");
        auto it = std::make_shared<const accelaes::Bundle>(folder, options);
        *bundle = new OpenBundle(std::move(it));
    });
}

void accelaes_close(accelaes_bundle* bundle) { delete static_cast<OpenBundle*>(bundle); }

void accelaes_bundle_facts(const accelaes_bundle* bundle, accelaes_facts* facts) {
    if (bundle == nullptr || facts == nullptr) return;
    const auto& manifest = behind(bundle)->manifest;
    accelaes_facts found = {};
    found.images = static_cast<int>(manifest.batch);
    found.tokens = static_cast<int>(manifest.tokens);
    found.text_tokens = static_cast<int>(manifest.text_tokens);
    found.guided_rows = manifest.layout == accelaes::Layout::none ? 1 : 2;
    found.uncond_first = manifest.layout == accelaes::Layout::uncond_cond;
    found.steps = manifest.steps;
    found.guidance = manifest.guidance;
    found.latent_rank = static_cast<int>(manifest.latent_shape.size());
    for (size_t k = 0; k < manifest.latent_shape.size() && k < 4; ++k) found.latent_shape[k] = manifest.latent_shape[k];
    found.presets = static_cast<int>(manifest.presets.size());
    found.encodes = manifest.conditioned.has_value();
    found.picture_height = static_cast<int>(manifest.picture_height);
    found.picture_width = static_cast<int>(manifest.picture_width);
    found.picture_frames = static_cast<int>(manifest.picture_frames);
    hand_over(facts, found, facts->size);
}

const char* accelaes_preset_name(const accelaes_bundle* bundle, int index) {
    if (bundle == nullptr || index < 0 || static_cast<size_t>(index) >= behind(bundle)->manifest.presets.size())
        return nullptr;
    return behind(bundle)->manifest.presets[static_cast<size_t>(index)].name.c_str();
}

int accelaes_conditioning(const accelaes_bundle* bundle, int index, accelaes_spec* spec) {
    if (bundle == nullptr || spec == nullptr || index < 0) return 0;
    const auto& manifest = behind(bundle)->manifest;
    if (static_cast<size_t>(index) >= manifest.conditioning.size()) return 0;
    for (const auto& input : manifest.inputs) {
        if (input.name != manifest.conditioning[static_cast<size_t>(index)] || input.shape.size() > 6) continue;
        accelaes_spec found = {};
        found.name = input.name.c_str();
        found.is_int64 = input.is_int64();
        found.rank = static_cast<int>(input.shape.size());
        for (size_t axis = 0; axis < input.shape.size(); ++axis) {
            char letter = input.shape[axis].letter;
            found.shape[axis] = letter == 'B' ? ACCELAES_ROWS : letter == 'M' ? ACCELAES_TEXT : input.shape[axis].fixed;
        }
        hand_over(spec, found, spec->size);
        return 1;
    }
    return 0;
}

accelaes_status* accelaes_run_bytes(const accelaes_bundle* bundle, const accelaes_run_options* options, size_t* host,
                                    size_t* device) {
    return guarded([&] {
        require(bundle, "The bundle");
        accelaes::RunPlan plan(*behind(bundle), known(options, "options"));
        size_t all = plan.bytes(behind(bundle)->manifest), mirrored = plan.host_bytes(behind(bundle)->manifest);
        bool on_host = behind(bundle)->device.is_host();
        if (host != nullptr) *host = on_host ? all : mirrored;
        if (device != nullptr) *device = on_host ? 0 : all;
    });
}

accelaes_status* accelaes_run_new(const accelaes_bundle* bundle, const accelaes_run_options* options,
                                  accelaes_run** run) {
    return guarded([&] {
        require(bundle, "The bundle");
        require(run, "The place for the run");
        *run = nullptr;
        *run = new BegunRun(behind(bundle), accelaes::RunPlan(*behind(bundle), known(options, "options")));
    });
}

void accelaes_run_free(accelaes_run* run) { delete static_cast<BegunRun*>(run); }

accelaes_status* accelaes_run_input(accelaes_run* run, const accelaes_tensor* tensors, size_t count) {
    return guarded([&] {
        require(run, "The run");
        auto own = listed(tensors, count, "tensor");
        behind(run).input(own.data(), own.size());
    });
}

accelaes_status* accelaes_run_prompt(accelaes_run* run, const accelaes_prompt* prompts, size_t count,
                                     const accelaes_tensor* tensors, size_t tensor_count) {
    return guarded([&] {
        require(run, "The run");
        auto own = listed(prompts, count, "prompt");
        auto beside = listed(tensors, tensor_count, "tensor");
        behind(run).prompt(own.data(), own.size(), beside.data(), beside.size());
    });
}

int accelaes_run_word(const accelaes_run* run, int image, int index, accelaes_word* word) {
    if (run == nullptr || word == nullptr || image < 0 || index < 0) return 0;
    const auto& words = behind(run).words();
    if (static_cast<size_t>(image) >= words.size()) return 0;
    const auto& own = words[static_cast<size_t>(image)];
    if (static_cast<size_t>(index) >= own.size()) return 0;
    const auto& [text, weight] = own[static_cast<size_t>(index)];
    hand_over(word, accelaes_word{sizeof(accelaes_word), text.c_str(), weight}, word->size);
    return 1;
}

accelaes_status* accelaes_run_next(accelaes_run* run, accelaes_step* step, int* more) {
    return guarded([&] {
        require(run, "The run");
        if (more != nullptr) *more = 0;
        accelaes_step found = {};
        bool left = behind(run).next(&found);
        if (step != nullptr) hand_over(step, found, step->size);
        if (more != nullptr) *more = left;
    });
}

const float* accelaes_run_latents(const accelaes_run* run, size_t* count) {
    const float* found = run == nullptr ? nullptr : looked_at([&] { return behind(run).latents(); });
    if (count != nullptr) *count = found == nullptr ? 0 : behind(run).latent_numbers();
    return found;
}

const int64_t* accelaes_run_focus(const accelaes_run* run, int* n) {
    const int64_t* found = run == nullptr ? nullptr : looked_at([&] { return behind(run).focus(); });
    if (n != nullptr) *n = found == nullptr ? 0 : static_cast<int>(behind(run).focus_tokens());
    return found;
}

accelaes_status* accelaes_run_picture(const accelaes_run* run, unsigned char* pixels, size_t size) {
    return guarded([&] {
        require(run, "The run");
        require(pixels, "The place for the pictures");
        behind(run).picture(pixels, size);
    });
}

void accelaes_run_cancel(accelaes_run* run) {
    if (run != nullptr) behind(run).cancel();
}

}  // extern "C"
