// From a step to the engine: the contract's tensors by name, in its order.
#include <deque>

#include "failure.hpp"
#include "room.hpp"
#include "run.hpp"

namespace accelaes {
namespace {

// Tensors of one call, whose shapes stay where they are as long as it lives.
class Tensors {
   public:
    Tensors(int64_t rows, int64_t n, int64_t m, int64_t M, int64_t a)
        : rows_(rows), n_(n), m_(m), text_(M), observed_(a) {}

    void add(std::vector<Tensor>& to, const Spec& spec, const Place& place) {
        auto& shape = shapes_.emplace_back();
        for (const auto& size : spec.shape)
            shape.push_back(size.letter == 0 ? size.fixed : sized(size.letter) - size.less);
        if (place.type != spec.type || room(shape) > place.numbers)
            refuse("The engine's tensor " + spec.name +
                   " is of another type or size than this release has it; build the bundle again.");
        to.push_back({spec.name.c_str(), place.type, const_cast<void*>(place.data), shape.data(),
                      static_cast<int>(shape.size()), false});
    }

   private:
    int64_t sized(char letter) const {
        switch (letter) {
            case 'B': return rows_;
            case 'n': return n_;
            case 'm': return m_;
            case 'M': return text_;
            case 'a': return observed_;
            default:
                refuse(std::string("The engine has a tensor with the letter ") + letter +
                       ", which this release doesn't know.");
        }
    }

    int64_t rows_, n_, m_, text_, observed_;
    std::deque<std::vector<int64_t>> shapes_;
};

}  // namespace

void Run::engine_call(const Call& call) {
    int64_t m = manifest_.tokens - call.n, w = manifest_.token_width();
    double begun = seconds();
    for (int half = 0; half < (plan_.two_calls ? 2 : 1); ++half) {
        auto& bound = calls_[{call.focus, cache_.first(), call.observed, call.keep, call.left_out, half}];
        if (bound == nullptr) bound = bind(call, half);
        bound->run();
    }
    engine_seconds_ += seconds() - begun;
    convert(raw_focus_, call.predicted, plan_.rows * call.n * w);
    if (!call.whole) convert(raw_background_, background_rows_.data(), plan_.rows * m * w);
}

// The engine with a call's tensors, of all rows or of one half of them.
std::unique_ptr<const Bound> Run::bind(const Call& call, int half) {
    int64_t rows = plan_.rows / (plan_.two_calls ? 2 : 1), first = half * rows;
    int64_t m = manifest_.tokens - call.n, w = manifest_.token_width();
    bool observed = call.observed && half == 0;
    Tensors tensors(rows, call.n, m, text_tokens_, observed ? call.n : 0);
    std::vector<Tensor> inputs, outputs;
    const BlockRange* range = call.left_out < 0 ? nullptr : &manifest_.ranges[static_cast<size_t>(call.left_out)];
    for (const auto& spec : range == nullptr ? manifest_.inputs : range->engine.inputs)
        tensors.add(inputs, spec, input_of(spec, call, first, m));
    size_t entry = 0;
    for (const auto& spec : range == nullptr ? manifest_.outputs : range->engine.outputs) {
        bool cached = entry < cache_.entries.size() && spec.name == manifest_.cache[entry].name;
        if (spec.name == "focus_prediction") {
            tensors.add(outputs, spec, output_of(raw_focus_, call.predicted, first, call.n * w));
        } else if (spec.name == "background_prediction" && !call.whole) {
            tensors.add(outputs, spec, output_of(raw_background_, background_rows_.data(), first, m * w));
        } else if (spec.name == "affinity" && observed) {
            tensors.add(outputs, spec, {affinity_rows_.data(), Type::f32, affinity_rows_.size()});
        } else if (call.whole && range == nullptr && changes_.count(spec.name) > 0) {
            tensors.add(outputs, spec, of_rows(changes_.at(spec.name), first));
        } else if (cached) {
            auto& own = cache_.entries[entry++];
            char* to = call.whole ? own.full : own.fresh;
            if (call.keep) tensors.add(outputs, spec, of_cache(own, to, first, call.n));
        }
    }
    return std::make_unique<const Bound>(range == nullptr ? *bundle_->engine : bundle_->without(*range), inputs,
                                         outputs);
}

// Where the engine puts a prediction [B, ...] of so many numbers a row, of the rows from `first` on.
Place Run::output_of(Raw& raw, float* numbers, int64_t first, int64_t of_row) const {
    size_t left = room({plan_.rows - first, of_row});
    if (raw.type == Type::f32) return {numbers + first * of_row, Type::f32, left};
    return {raw.data.data() + width_of(raw.type) * room({first, of_row}), raw.type, left};
}

// A cached tensor's rows from `first` on, of so many tokens.
Place Run::of_cache(const Cache::Entry& entry, const char* data, int64_t first, int64_t tokens) const {
    size_t numbers = entry.bytes(plan_.rows - first, tokens) / width_of(entry.of.type);
    return {data + entry.bytes(first, tokens), entry.of.type, numbers};
}

void Run::convert(const Raw& raw, float* numbers, int64_t count) {
    if (raw.type != Type::f32)
        device_(&DeviceFunctions::convert, numbers, Type::f32, raw.data.data(), raw.type, static_cast<size_t>(count));
}

// A tensor's rows from `first` on.
Place Run::of_rows(const Given& tensor, int64_t first) const {
    size_t of_row = tensor.by_row ? tensor.data.size() / static_cast<size_t>(plan_.rows) : 0;
    size_t skip = of_row * static_cast<size_t>(first);
    return {tensor.data.data() + skip, tensor.type, (tensor.data.size() - skip) / width_of(tensor.type)};
}

// Where an input of the engine is, of the rows from `first` on.
Place Run::input_of(const Spec& spec, const Call& call, int64_t first, int64_t m) const {
    auto left = [&](int64_t of_row) { return room({plan_.rows - first, of_row}); };
    if (spec.name == "hidden_states") {
        int64_t latent = plan_.latent(manifest_);
        size_t skip = room({first, latent});
        if (hidden_type_ == Type::f32) return {twice_.data() + skip, Type::f32, left(latent)};
        return {hidden_.data() + width_of(hidden_type_) * skip, hidden_type_, left(latent)};
    }
    if (spec.name == "timestep") return {timestep_.data() + first, Type::f32, left(1)};
    if (spec.name == "focus_index") return {call.focus + first * call.n, Type::i64, left(call.n)};
    if (spec.name == "background_index") return {call.background + first * m, Type::i64, left(m)};
    if (spec.name == "observed_index") return {everything_.data(), Type::i64, everything_.size()};
    if (spec.name == "token_weights") return {weights_.data() + first * text_tokens_, Type::f32, left(text_tokens_)};
    auto found = given_.find(spec.name);
    if (found != given_.end()) return of_rows(found->second, first);
    found = changes_.find(spec.name);
    if (found != changes_.end()) return of_rows(found->second, first);
    for (const auto& own : cache_.entries) {
        if (spec.name == own.of.name + "_bg") return of_cache(own, own.background, first, m);
    }
    refuse("The engine wants an input " + spec.name + ", which this release doesn't know.");
}

}  // namespace accelaes
