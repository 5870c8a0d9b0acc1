#include "programs.hpp"

#include <algorithm>
#include <tuple>

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
    auto& shape = shapes_.emplace_back();
    for (const auto& size : spec.shape) shape.push_back(size.letter != 0 ? sized(size.letter, program) : size.fixed);
    float* data = nullptr;
    size_t there = 0;
    auto known = state_.find(name);
    if (known != state_.end()) {
        int half = of_gate(name) ? gate_half : tokens_half;
        auto& buffer = known->second[static_cast<size_t>(output ? 1 - half : half)];
        // A score looks at the conditional rows alone.
        bool conditional = !spec.shape.empty() && spec.shape.front().letter == 'b';
        auto rest = conditional ? static_cast<int64_t>(room(shape)) / images_ : 0;
        size_t skip = std::min(buffer.size(), room({first_conditional_, rest}));
        data = buffer.data() + skip, there = buffer.size() - skip;
    } else {
        auto place = places_.find(name);
        if (place == places_.end())
            refuse("The preset " + preset_.name + " wants a tensor " + name + ", which this release doesn't know.");
        std::tie(data, there) = place->second;
    }
    if (spec.type != Type::f32 || room(shape) > there)
        refuse("The preset " + preset_.name + " has a tensor " + spec.name +
               " of another type or size than this release has it; build the bundle again.");
    return {spec.name.c_str(), Type::f32, data, shape.data(), static_cast<int>(shape.size()), false};
}

void Programs::bind() {
    bound_.clear();
    std::array<size_t, 2> known = {0, 0};  // of what is known of tokens, and of what a gate remembers
    for (const auto& [name, halves] : state_) ++known[of_gate(name) ? 1 : 0];
    for (const auto& [name, program] : preset_.programs) {
        Own& own = bound_[name];
        std::array<size_t, 2> made = {0, 0};
        for (const auto& spec : program.outputs) {
            if (spec.name.back() == '\'') ++made[of_gate(spec.name) ? 1 : 0];
        }
        for (size_t group = 0; group < 2; ++group) {
            own.writes[group] = made[group] > 0;
            if (made[group] > 0 && made[group] != known[group]) {
                refuse("The preset " + preset_.name + " has a program " + name +
                       " that makes a part of its state; build the bundle again.");
            }
        }
        for (int t : {0, 1}) {
            for (int g : {0, 1}) {
                std::vector<Tensor> inputs, outputs;
                for (const auto& spec : program.inputs) inputs.push_back(tensor(spec, name, t, g, false));
                for (const auto& spec : program.outputs) outputs.push_back(tensor(spec, name, t, g, true));
                own.bound[static_cast<size_t>(t)][static_cast<size_t>(g)] =
                    std::make_unique<const Bound>(bundle_.program(program), inputs, outputs);
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
    Own& own = bound_.at(program);
    own.bound[static_cast<size_t>(half_[0])][static_cast<size_t>(half_[1])]->run();
    for (size_t group = 0; group < 2; ++group) {
        if (own.writes[group]) half_[group] = 1 - half_[group];
    }
}

}  // namespace accelaes
