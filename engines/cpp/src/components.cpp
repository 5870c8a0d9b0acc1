#include "components.hpp"

#include <algorithm>
#include <deque>

#include "failure.hpp"
#include "room.hpp"

namespace accelaes {
namespace {

const char* const input_ids = "input_ids";
const char* const attention_mask = "attention_mask";

const Spec& named(const std::vector<Spec>& specs, const std::string& name) {
    for (const auto& spec : specs) {
        if (spec.name == name) return spec;
    }
    refuse("A component of the bundle has no tensor " + name + "; build it again.");
}

// The shape for so many rows of so many text tokens.
std::vector<int64_t> sized(const Spec& spec, int64_t rows, int64_t text) {
    std::vector<int64_t> shape;
    for (const auto& size : spec.shape) {
        if (size.letter != 0 && size.letter != 'b' && size.letter != 'M')
            refuse("A component's tensor " + spec.name + " has the letter " + std::string(1, size.letter) +
                   ", which this release doesn't know.");
        int64_t own = size.letter == 'b' ? rows : size.letter == 'M' ? text : size.fixed;
        if (own <= size.less)
            refuse("The texts have " + std::to_string(own) + " ids, the first " + std::to_string(size.less) +
                   " of which stand before every prompt: give those, and the prompt's behind them.");
        shape.push_back(own - size.less);
    }
    return shape;
}

// Calls of a component's graph on the host's numbers, int64 and fp32 as they are and of 16 bits converted.
class Call {
   public:
    // Of so many rows, and of so many text tokens each.
    Call(int64_t rows, int64_t text) : rows_(rows), text_(text) {}

    // From and to numbers of all rows, where this call's begin at row `first`.
    void give(const Spec& spec, const std::vector<int64_t>& numbers, int64_t first) {
        add(inputs_, spec, spec.is_int64(), const_cast<int64_t*>(numbers.data()), numbers.size(), first);
    }
    void give(const Spec& spec, const std::vector<float>& numbers, int64_t first) {
        add(inputs_, spec, !spec.is_int64(), const_cast<float*>(numbers.data()), numbers.size(), first);
    }
    void take(const Spec& spec, std::vector<float>& numbers, int64_t first) {
        add(outputs_, spec, !spec.is_int64(), numbers.data(), numbers.size(), first);
    }

    void run(const Graph& graph) {
        Bound(graph, inputs_, outputs_).run();
        for (const auto& one : taken_)
            host_functions()->convert(nullptr, one.to, Type::f32, one.halves.data(), one.type, one.halves.size());
    }

   private:
    struct Taken {
        Type type;
        std::vector<uint16_t> halves;
        void* to;
    };

    template <typename Number>
    void add(std::vector<Tensor>& to, const Spec& spec, bool of_its_type, Number* numbers, size_t there,
             int64_t first) {
        auto& shape = shapes_.emplace_back(sized(spec, rows_, text_));
        size_t count = room(shape);
        size_t skip = count / static_cast<size_t>(rows_) * static_cast<size_t>(first);
        if (!of_its_type || skip > there || count > there - skip)
            refuse("The bundle's " + spec.name +
                   " is of another type or size than this release has it; build the bundle again.");
        void* data = numbers + skip;
        if (width_of(spec.type) == 2) {
            bool given = &to == &inputs_;
            auto& halves = given ? given_.emplace_back() : taken_.emplace_back(Taken{spec.type, {}, data}).halves;
            halves.resize(count);
            if (given) host_functions()->convert(nullptr, halves.data(), spec.type, data, Type::f32, count);
            data = halves.data();
        }
        to.push_back({spec.name.c_str(), spec.type, data, shape.data(), static_cast<int>(shape.size()), true});
    }

    int64_t rows_, text_;
    std::vector<Tensor> inputs_, outputs_;
    std::deque<std::vector<int64_t>> shapes_;
    std::deque<std::vector<uint16_t>> given_;
    std::deque<Taken> taken_;
};

// Where ids before a prompt have no position, padding stands behind it: the first positions are cut off.
void check_padding(const Program& joined, const std::map<std::string, Text>& texts) {
    bool cut = false;
    for (const auto& spec : joined.outputs)
        cut = cut || std::any_of(spec.shape.begin(), spec.shape.end(), [](const Size& size) { return size.less > 0; });
    if (!cut) return;
    for (const auto& [name, text] : texts) {
        for (size_t k = 1; k < text.mask.size(); ++k) {
            if (k % static_cast<size_t>(text.length) != 0 && text.mask[k] > text.mask[k - 1])
                refuse(name + ".attention_mask hides ids before some that it shows; pad texts behind their ends.");
        }
    }
}

// Numbers of all rows of an output.
Numbers empty(const Spec& spec, int64_t rows, int64_t text) {
    Numbers made{sized(spec, rows, text), {}};
    made.data.resize(room(made.shape));
    return made;
}

}  // namespace

std::map<std::string, Numbers> run_encoder(const Bundle& bundle, const Encoder& encoder, const Text& text) {
    if (text.length > encoder.length)
        refuse(encoder.tokenizer + ".input_ids has " + std::to_string(text.length) + " ids a row, and the bundle's " +
               encoder.name + " takes " + std::to_string(encoder.length) + ": cut or pad texts to that.");
    const Spec &ids = named(encoder.graph.inputs, input_ids), &mask = named(encoder.graph.inputs, attention_mask);
    std::vector<int64_t> ones(encoder.masked ? 0 : text.ids.size(), 1);
    const auto& seen = encoder.masked ? text.mask : ones;
    std::map<std::string, Numbers> made;
    for (const auto& spec : encoder.graph.outputs) made[spec.name] = empty(spec, text.rows, text.length);
    for (int64_t first = 0; first < text.rows; first += encoder.rows) {
        Call call(std::min(encoder.rows, text.rows - first), text.length);
        call.give(ids, text.ids, first);
        call.give(mask, seen, first);
        for (const auto& spec : encoder.graph.outputs) call.take(spec, made.at(spec.name).data, first);
        call.run(bundle.component(encoder.graph));
    }
    return made;
}

std::map<std::string, Numbers> encoded(const Bundle& bundle, const std::map<std::string, Text>& texts) {
    const auto& manifest = bundle.manifest;
    if (!manifest.conditioned)
        refuse(
            "Ids were given, and the bundle has no text encoders; give the conditioning itself, or build it again with "
            "--components text.");
    const Program& joined = *manifest.conditioned;
    int64_t rows = 0, most = 1;
    std::map<std::string, Numbers> made;
    for (const auto& encoder : manifest.encoders) {
        auto text = texts.find(encoder.tokenizer);
        if (text == texts.end())
            refuse("There is no tensor " + encoder.tokenizer + ".input_ids among those given, and the bundle's " +
                   encoder.name + " needs it.");
        rows = text->second.rows, most = encoder.rows;
        for (auto& [name, numbers] : run_encoder(bundle, encoder, text->second))
            made[encoder.name + "." + name] = std::move(numbers);
        made[encoder.tokenizer + "." + attention_mask].shape = {rows, text->second.length};
    }
    check_padding(joined, texts);
    // Where the graph takes any text length, it is that of the tensors that have one.
    int64_t length = 0;
    for (const auto& spec : joined.inputs) {
        auto found = made.find(spec.name);
        if (found == made.end())
            refuse("The bundle's conditioning is made of " + spec.name + ", which no encoder gives.");
        const auto& shape = found->second.shape;
        for (size_t axis = 0; axis < spec.shape.size(); ++axis) {
            bool fits = shape.size() == spec.shape.size();
            if (fits && spec.shape[axis].letter == 'M') {
                fits = length == 0 || length == shape[axis];
                length = shape[axis];
            } else if (fits && spec.shape[axis].letter == 0) {
                fits = shape[axis] == spec.shape[axis].fixed;
            }
            if (!fits)
                refuse("The texts have other lengths than the bundle's " + spec.name + " takes (" +
                       (spec.shape[axis].letter == 0
                            ? std::to_string(spec.shape[axis].fixed) + " on axis " + std::to_string(axis)
                            : std::string("one length for all")) +
                       "): pad them as the tokenizer of the pipeline does.");
        }
    }
    // A mask is a tokenizer's own; all else are encoders' numbers.
    auto give = [&](Call& call, const Spec& spec, int64_t first) {
        auto text = texts.find(spec.name.substr(0, spec.name.rfind('.')));
        if (text != texts.end()) {
            call.give(spec, text->second.mask, first);
        } else {
            call.give(spec, made.at(spec.name).data, first);
        }
    };
    std::map<std::string, Numbers> found;
    for (const auto& spec : joined.outputs) found[spec.name] = empty(spec, rows, length);
    for (int64_t first = 0; first < rows; first += most) {
        Call call(std::min(most, rows - first), length);
        for (const auto& spec : joined.inputs) give(call, spec, first);
        for (const auto& spec : joined.outputs) call.take(spec, found.at(spec.name).data, first);
        call.run(bundle.component(joined));
    }
    return found;
}

void decode(const Bundle& bundle, const std::vector<float>& latents, int64_t images, uint8_t* pixels) {
    const Vae& vae = *bundle.manifest.vae;
    const Spec &given = vae.latents.inputs.at(0), &z = vae.latents.outputs.at(0);
    const Spec &taken = vae.decoder.inputs.at(0), &image = named(vae.decoder.outputs, "image");
    for (int64_t first = 0; first < images; first += vae.rows) {
        int64_t rows = std::min(vae.rows, images - first);
        Numbers unscaled = empty(z, rows, 0), shown = empty(image, rows, 0);
        Call scale(rows, 0), paint(rows, 0);
        scale.give(given, latents, first);
        scale.take(z, unscaled.data, 0);
        scale.run(bundle.component(vae.latents));
        paint.give(taken, unscaled.data, 0);
        paint.take(image, shown.data, 0);
        paint.run(bundle.component(vae.decoder));
        auto* to = pixels + static_cast<size_t>(first) * (shown.data.size() / static_cast<size_t>(rows));
        for (size_t k = 0; k < shown.data.size(); ++k) {
            // What is no number is black, as in diffusers' images.
            to[k] = shown.data[k] > 0 ? static_cast<uint8_t>(std::min(shown.data[k], 255.0f)) : 0;
        }
    }
}

}  // namespace accelaes
