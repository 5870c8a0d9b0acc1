// accelaes.h for C++: what is opened is closed, and what isn't good is thrown. Header only.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "accelaes.h"

namespace accelaes {

// A status that isn't good, with the command line's exit code.
struct Error : std::runtime_error {
    int code;

    Error(int of, const char* sentence) : std::runtime_error(sentence), code(of) {}
};

inline void check(accelaes_status* status) {
    if (status == nullptr) return;
    Error error(accelaes_status_code(status), accelaes_status_sentence(status));
    accelaes_status_free(status);
    throw error;
}

// A struct of accelaes.h with its size filled in.
template <typename Struct>
Struct sized() {
    Struct made = {};
    made.size = sizeof made;
    return made;
}

// A tensor of fp32 or int64 numbers, which stay the caller's until `Run::input` returns.
template <typename Number>
accelaes_tensor tensor(const char* name, const Number* data, const std::vector<int64_t>& shape) {
    static_assert(std::is_same<Number, float>::value || std::is_same<Number, int64_t>::value, "fp32 or int64");
    auto made = sized<accelaes_tensor>();
    made.name = name;
    made.is_int64 = std::is_same<Number, int64_t>::value;
    made.data = data;
    made.shape = shape.data();
    made.rank = static_cast<int>(shape.size());
    return made;
}

class Run {
   public:
    explicit Run(accelaes_run* run) : run_(run, accelaes_run_free) {}

    void input(const std::vector<accelaes_tensor>& tensors) {
        check(accelaes_run_input(run_.get(), tensors.data(), tensors.size()));
    }
    // One prompt for each image, or fewer that each are of as many.
    void prompt(const std::vector<accelaes_prompt>& prompts, const std::vector<accelaes_tensor>& tensors = {}) {
        check(accelaes_run_prompt(run_.get(), prompts.data(), prompts.size(), tensors.data(), tensors.size()));
    }
    // The words of an image's prompt and what each weighs in the mask; none without one.
    std::vector<std::pair<std::string, double>> words(int image = 0) const {
        std::vector<std::pair<std::string, double>> found;
        auto word = sized<accelaes_word>();
        while (accelaes_run_word(run_.get(), image, static_cast<int>(found.size()), &word) != 0)
            found.emplace_back(word.text, word.weight);
        return found;
    }
    // The next step, and whether there are more.
    std::pair<accelaes_step, bool> next() {
        auto step = sized<accelaes_step>();
        int more = 0;
        check(accelaes_run_next(run_.get(), &step, &more));
        return {step, more != 0};
    }
    // The latents as they are now; valid until the next step.
    std::pair<const float*, size_t> latents() const {
        size_t count = 0;
        const float* data = accelaes_run_latents(run_.get(), &count);
        return {data, count};
    }
    // The focus index [images, n] of the last sparse step; empty before one.
    std::vector<int64_t> focus(int images = 1) const {
        int n = 0;
        const int64_t* index = accelaes_run_focus(run_.get(), &n);
        return n == 0 ? std::vector<int64_t>() : std::vector<int64_t>(index, index + int64_t{images} * n);
    }
    // The latents as they are now, as pictures [b, height, width, 3] or videos [b, frames, height, width, 3] of `bytes`
    // in all.
    std::vector<unsigned char> picture(size_t bytes) const {
        std::vector<unsigned char> pixels(bytes);
        check(accelaes_run_picture(run_.get(), pixels.data(), pixels.size()));
        return pixels;
    }
    // From any thread.
    void cancel() { accelaes_run_cancel(run_.get()); }

   private:
    std::unique_ptr<accelaes_run, void (*)(accelaes_run*)> run_;
};

// Of one picture, or of the frames of one video.
inline size_t picture_bytes(const accelaes_facts& facts) {
    return size_t{3} * static_cast<size_t>(facts.picture_frames) * static_cast<size_t>(facts.picture_height) *
           static_cast<size_t>(facts.picture_width);
}

class Bundle {
   public:
    explicit Bundle(const std::string& folder, const accelaes_open_options& options = sized<accelaes_open_options>())
        : bundle_(nullptr, accelaes_close) {
        accelaes_bundle* opened = nullptr;
        check(accelaes_open(folder.c_str(), &options, &opened));
        bundle_.reset(opened);
    }
    accelaes_facts facts() const {
        auto found = sized<accelaes_facts>();
        accelaes_bundle_facts(bundle_.get(), &found);
        return found;
    }
    Run run(const accelaes_run_options& options) const {
        accelaes_run* made = nullptr;
        check(accelaes_run_new(bundle_.get(), &options, &made));
        return Run(made);
    }
    const accelaes_bundle* get() const { return bundle_.get(); }

   private:
    std::unique_ptr<accelaes_bundle, void (*)(accelaes_bundle*)> bundle_;
};

}  // namespace accelaes
