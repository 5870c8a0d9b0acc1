#include "components.hpp"

#include <algorithm>

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
        shape.push_back(size.letter == 'b' ? rows : size.letter == 'M' ? text : size.fixed);
    }
    return shape;
}

int64_t count_of(const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (int64_t size : shape) count = static_cast<int64_t>(room({count, size}));
    return count;
}

Tensor placed(const Spec& spec, void* data, const std::vector<int64_t>& shape) {
    return {spec.name.c_str(), spec.int64 ? Type::i64 : Type::f32, data, shape.data(), static_cast<int>(shape.size())};
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
    for (const auto& spec : encoder.graph.outputs) {
        Numbers& numbers = made[spec.name];
        numbers.shape = sized(spec, text.rows, text.length);
        numbers.data.resize(static_cast<size_t>(count_of(numbers.shape)));
    }
    for (int64_t first = 0; first < text.rows; first += encoder.rows) {
        int64_t rows = std::min(encoder.rows, text.rows - first);
        std::vector<int64_t> of_ids = {rows, text.length};
        auto from = static_cast<size_t>(first * text.length);
        std::vector<Tensor> inputs = {placed(ids, const_cast<int64_t*>(text.ids.data() + from), of_ids),
                                      placed(mask, const_cast<int64_t*>(seen.data() + from), of_ids)};
        std::vector<std::vector<int64_t>> shapes;
        shapes.reserve(encoder.graph.outputs.size());
        std::vector<Tensor> outputs;
        for (const auto& spec : encoder.graph.outputs) {
            Numbers& numbers = made[spec.name];
            shapes.push_back(sized(spec, rows, text.length));
            int64_t one = count_of(shapes.back()) / rows;
            outputs.push_back(placed(spec, numbers.data.data() + first * one, shapes.back()));
        }
        bundle.graph(encoder.graph).run(inputs, outputs);
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
    std::map<std::string, int64_t> lengths;
    for (const auto& encoder : manifest.encoders) {
        auto text = texts.find(encoder.tokenizer);
        if (text == texts.end())
            refuse("There is no tensor " + encoder.tokenizer + ".input_ids among those given, and the bundle's " +
                   encoder.name + " needs it.");
        rows = text->second.rows, most = encoder.rows;
        for (auto& [name, numbers] : run_encoder(bundle, encoder, text->second))
            made[encoder.name + "." + name] = std::move(numbers);
        Numbers& mask = made[encoder.tokenizer + "." + attention_mask];
        mask.shape = {rows, text->second.length};
        lengths[encoder.tokenizer] = text->second.length;
    }
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
    std::map<std::string, Numbers> found;
    for (const auto& spec : joined.outputs) {
        found[spec.name].shape = sized(spec, rows, length);
        found[spec.name].data.resize(static_cast<size_t>(count_of(found[spec.name].shape)));
    }
    for (int64_t first = 0; first < rows; first += most) {
        int64_t now = std::min(most, rows - first);
        std::vector<std::vector<int64_t>> shapes;
        shapes.reserve(joined.inputs.size() + joined.outputs.size());
        auto part = [&](const Spec& spec, void* data, int64_t width) {
            shapes.push_back(sized(spec, now, length));
            int64_t one = count_of(shapes.back()) / now;
            return placed(spec, static_cast<char*>(data) + first * one * width, shapes.back());
        };
        std::vector<Tensor> inputs, outputs;
        for (const auto& spec : joined.inputs) {
            bool is_mask = spec.int64;
            if (is_mask) {
                auto tokenizer = spec.name.substr(0, spec.name.rfind('.'));
                auto text = texts.find(tokenizer);
                if (text == texts.end()) refuse("The bundle's conditioning wants " + spec.name + "; build it again.");
                inputs.push_back(part(spec, const_cast<int64_t*>(text->second.mask.data()), sizeof(int64_t)));
            } else {
                inputs.push_back(part(spec, made.at(spec.name).data.data(), sizeof(float)));
            }
        }
        for (const auto& spec : joined.outputs)
            outputs.push_back(part(spec, found.at(spec.name).data.data(), sizeof(float)));
        bundle.graph(joined).run(inputs, outputs);
    }
    return found;
}

void decode(const Bundle& bundle, const std::vector<float>& latents, int64_t images, uint8_t* pixels) {
    const Vae& vae = *bundle.manifest.vae;
    const Spec &given = vae.latents.inputs.at(0), &z = vae.latents.outputs.at(0);
    const Spec& image = named(vae.decoder.outputs, "image");
    for (int64_t first = 0; first < images; first += vae.rows) {
        int64_t rows = std::min(vae.rows, images - first);
        auto of_latents = sized(given, rows, 0), of_z = sized(z, rows, 0), of_image = sized(image, rows, 0);
        std::vector<float> unscaled(static_cast<size_t>(count_of(of_z)));
        std::vector<float> shown(static_cast<size_t>(count_of(of_image)));
        auto from = static_cast<size_t>(first * (count_of(of_latents) / rows));
        bundle.graph(vae.latents)
            .run({placed(given, const_cast<float*>(latents.data() + from), of_latents)},
                 {placed(z, unscaled.data(), of_z)});
        bundle.graph(vae.decoder)
            .run({placed(vae.decoder.inputs.at(0), unscaled.data(), of_z)}, {placed(image, shown.data(), of_image)});
        auto* to = pixels + static_cast<size_t>(first) * (shown.size() / static_cast<size_t>(rows));
        for (size_t k = 0; k < shown.size(); ++k) {
            // What is no number is black, as in diffusers' images.
            to[k] = shown[k] > 0 ? static_cast<uint8_t>(std::min(shown[k], 255.0f)) : 0;
        }
    }
}

}  // namespace accelaes
