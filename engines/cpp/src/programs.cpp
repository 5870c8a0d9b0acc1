#include "programs.hpp"

#include "failure.hpp"
#include "room.hpp"

namespace accelaes {
namespace {

size_t numbers(const Spec& spec, int64_t rows) {
    size_t count = 1;
    for (const auto& size : spec.shape) {
        count = room({static_cast<int64_t>(count), size.letter != 0 ? rows : size.fixed});
    }
    return count;
}

}  // namespace

Programs::Programs(const Bundle& bundle, const Preset& preset, int64_t rows, int64_t images, int64_t first_conditional,
                   int64_t gated)
    : bundle_(bundle),
      preset_(preset),
      rows_(rows),
      images_(images),
      first_conditional_(first_conditional),
      gated_(gated) {
    for (const auto& spec : preset.state) {
        size_t count = numbers(spec, of_gate(spec.name) ? gated : rows);
        for (auto& half : state_[spec.name]) half = Buffer<float>(bundle.device, count);
    }
}

size_t Programs::bytes(const Preset& preset, int64_t rows, int64_t gated) {
    size_t count = 0;
    for (const auto& spec : preset.state) count += numbers(spec, of_gate(spec.name) ? gated : rows);
    return 2 * sizeof(float) * count;
}

int64_t Programs::sized(char letter, const std::string& program) const {
    if (letter == 'b') return images_;
    if (letter == 'B') return program == "decide" || program == "observe" ? gated_ : rows_;
    refuse("The preset " + preset_.name + " has a program with the letter " + letter +
           ", which this release doesn't know.");
}

Tensor Programs::tensor(const Spec& spec, const std::string& program, int tokens_half, int gate_half, bool output) {
    std::string name = spec.name;
    if (output && !name.empty() && name.back() == '\'') name.pop_back();
    shapes_.emplace_back();
    int64_t rest = 1;
    for (const auto& size : spec.shape) {
        shapes_.back().push_back(size.letter != 0 ? sized(size.letter, program) : size.fixed);
        if (&size != &spec.shape.front()) rest *= shapes_.back().back();
    }
    names_.push_back(spec.name);
    float* data = nullptr;
    auto known = state_.find(name);
    if (known != state_.end()) {
        int half = of_gate(name) ? gate_half : tokens_half;
        auto& buffer = known->second[static_cast<size_t>(output ? 1 - half : half)];
        data = buffer.data();
        // A score looks at the conditional rows alone.
        if (!spec.shape.empty() && spec.shape.front().letter == 'b') data += first_conditional_ * rest;
    } else {
        auto place = places_.find(name);
        if (place == places_.end())
            refuse("The preset " + preset_.name + " wants a tensor " + name + ", which this release doesn't know.");
        data = place->second;
    }
    return {
        names_.back().c_str(), Type::f32, data, shapes_.back().data(), static_cast<int>(shapes_.back().size()), false};
}

void Programs::bind() {
    bound_.clear();
    std::array<size_t, 2> known = {0, 0};  // of what is known of tokens, and of what a gate remembers
    for (const auto& [name, halves] : state_) ++known[of_gate(name) ? 1 : 0];
    for (const auto& [name, program] : preset_.programs) {
        Bound& bound = bound_[name];
        bound.graph = bundle_.programs(preset_).at(name);
        std::array<size_t, 2> made = {0, 0};
        for (const auto& spec : program.outputs) {
            if (spec.name.back() == '\'') ++made[of_gate(spec.name) ? 1 : 0];
        }
        for (size_t group = 0; group < 2; ++group) {
            bound.writes[group] = made[group] > 0;
            if (made[group] > 0 && made[group] != known[group]) {
                refuse("The preset " + preset_.name + " has a program " + name +
                       " that makes a part of its state; build the bundle again.");
            }
        }
        for (size_t t = 0; t < 2; ++t) {
            for (size_t g = 0; g < 2; ++g) {
                for (const auto& spec : program.inputs) {
                    bound.inputs[t][g].push_back(tensor(spec, name, static_cast<int>(t), static_cast<int>(g), false));
                }
                for (const auto& spec : program.outputs) {
                    bound.outputs[t][g].push_back(tensor(spec, name, static_cast<int>(t), static_cast<int>(g), true));
                }
            }
        }
    }
}

void Programs::begin() {
    half_ = {0, 0};
    for (auto& [name, halves] : state_) {
        for (auto& half : halves) bundle_.device(&DeviceFunctions::fill, half.data(), half.size(), 0.0f);
    }
}

void Programs::run(const std::string& program) {
    Bound& bound = bound_.at(program);
    auto t = static_cast<size_t>(half_[0]), g = static_cast<size_t>(half_[1]);
    bound.graph->run(bound.inputs[t][g], bound.outputs[t][g]);
    for (size_t group = 0; group < 2; ++group) {
        if (bound.writes[group]) half_[group] = 1 - half_[group];
    }
}

}  // namespace accelaes
