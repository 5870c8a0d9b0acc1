// A preset's programs bound to a run's tensors: what is known from step to step lies twice, one half read and one
// written.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bundle.hpp"

namespace accelaes {

class Programs {
   public:
    // `rows`: B. `images`: b. `first_conditional`: the row where the conditional images begin. `gated`: rows a gate
    // sees.
    Programs(const Bundle& bundle, const Preset& preset, int64_t rows, int64_t images, int64_t first_conditional,
             int64_t gated);

    // Say where the tensor called `name` is and how many numbers there are, before `bind`.
    void place(const std::string& name, float* data, size_t numbers) { places_[name] = {data, numbers}; }
    void bind();
    // All that is known is forgotten.
    void begin();

    bool has(const std::string& program) const { return preset_.has(program); }
    void run(const std::string& program);

    static size_t bytes(const Preset& preset, int64_t rows, int64_t gated);

   private:
    struct Own {
        // By the halves that are read now: of what is known of tokens, and of what a gate remembers.
        std::array<std::array<std::unique_ptr<const Bound>, 2>, 2> bound;
        std::array<bool, 2> writes = {false, false};
    };

    static bool of_gate(const std::string& name) { return name.rfind("gate.", 0) == 0; }
    Tensor tensor(const Spec& spec, const std::string& program, int tokens_half, int gate_half, bool output);
    int64_t sized(char letter, const std::string& program) const;

    const Bundle& bundle_;
    const Preset& preset_;
    int64_t rows_, images_, first_conditional_, gated_;
    std::map<std::string, std::array<Buffer<float>, 2>> state_;
    std::map<std::string, std::pair<float*, size_t>> places_;
    std::map<std::string, Own> bound_;
    std::deque<std::vector<int64_t>> shapes_;
    std::array<int, 2> half_ = {0, 0};
};

}  // namespace accelaes
