// From a step to the engine: the contract's tensors by name, in its order.
#include <deque>

#include "failure.hpp"
#include "run.hpp"

namespace accelaes {
namespace {

// Tensors of one call, whose shapes stay where they are as long as it lives.
class Tensors {
   public:
    Tensors(int64_t rows, int64_t n, int64_t m, int64_t M, int64_t a)
        : rows_(rows), n_(n), m_(m), text_(M), observed_(a) {}

    void add(std::vector<Tensor>& to, const Spec& spec, const void* data) {
        shapes_.emplace_back();
        for (const auto& size : spec.shape)
            shapes_.back().push_back(size.letter == 0 ? size.fixed : sized(size.letter));
        Type type = spec.int64 ? Type::i64 : Type::f32;
        to.push_back({spec.name.c_str(), type, const_cast<void*>(data), shapes_.back().data(),
                      static_cast<int>(spec.shape.size())});
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
    int64_t calls = plan_.two_calls ? 2 : 1, rows = plan_.rows / calls;
    for (int64_t k = 0; k < calls; ++k) {
        int64_t first = k * rows, m = manifest_.tokens - call.n, w = manifest_.token_width();
        bool observed = call.observed && k == 0;
        Tensors tensors(rows, call.n, m, text_tokens_, observed ? call.n : 0);
        std::vector<Tensor> inputs, outputs;
        for (const auto& spec : manifest_.inputs) tensors.add(inputs, spec, input_of(spec, call, first, m));
        size_t entry = 0;
        for (const auto& spec : manifest_.outputs) {
            bool cached = entry < cache_.entries.size() && spec.name == manifest_.cache[entry].name;
            if (spec.name == "focus_prediction") {
                tensors.add(outputs, spec, call.predicted + first * call.n * w);
            } else if (spec.name == "background_prediction" && !call.whole) {
                tensors.add(outputs, spec, background_rows_.data() + first * m * w);
            } else if (spec.name == "affinity" && observed) {
                tensors.add(outputs, spec, affinity_rows_.data());
            } else if (cached) {
                auto& own = cache_.entries[entry++];
                auto& to = call.whole ? own.full : own.fresh;
                if (call.keep) tensors.add(outputs, spec, to.data() + first * own.heads * call.n * own.head_dim);
            }
        }
        double begun = seconds();
        bundle_->engine->run(inputs, outputs);
        engine_seconds_ += seconds() - begun;
    }
}

// Where an input of the engine is, of the rows from `first` on.
const void* Run::input_of(const Spec& spec, const Call& call, int64_t first, int64_t m) const {
    if (spec.name == "hidden_states") return twice_.data() + first * plan_.latent(manifest_);
    if (spec.name == "timestep") return timestep_.data() + first;
    if (spec.name == "focus_index") return call.focus + first * call.n;
    if (spec.name == "background_index") return call.background + first * m;
    if (spec.name == "observed_index") return observed_.data();
    if (spec.name == "token_weights") return weights_.data() + first * text_tokens_;
    auto found = given_.find(spec.name);
    if (found != given_.end()) {
        const Given& given = found->second;
        size_t count = spec.int64 ? given.labels.size() : given.numbers.size();
        size_t skip = given.by_row ? count / static_cast<size_t>(plan_.rows) * static_cast<size_t>(first) : 0;
        return spec.int64 ? static_cast<const void*>(given.labels.data() + skip) : given.numbers.data() + skip;
    }
    for (size_t k = 0; k < cache_.entries.size(); ++k) {
        const auto& own = cache_.entries[k];
        if (spec.name == manifest_.cache[k].name + "_bg")
            return own.background.data() + first * own.heads * m * own.head_dim;
    }
    refuse("The engine wants an input " + spec.name + ", which this release doesn't know.");
}

}  // namespace accelaes
