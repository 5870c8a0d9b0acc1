// What a run is made of, as its caller gives it: tensors, ids or prompts.
#include <algorithm>
#include <cstring>

#include "failure.hpp"
#include "noise.hpp"
#include "prompts.hpp"
#include "room.hpp"
#include "run.hpp"
#include "text/characters.hpp"

namespace accelaes {
void Run::input(const accelaes_tensor* tensors, size_t count) {
    std::map<std::string, Text> texts;
    take_all(tensors, count, texts);
    if (!texts.empty()) encode(texts);
    begin();
}

void Run::prompt(const accelaes_prompt* prompts, size_t count, const accelaes_tensor* tensors, size_t given) {
    if (count == 0 || static_cast<size_t>(plan_.images) % count != 0)
        refuse(std::to_string(count) + " prompts were given, and the run makes " + std::to_string(plan_.images) +
               " images; give one for each, or one that all of them share.");
    std::map<std::string, Text> texts;
    take_all(tensors, given, texts);
    if (!texts.empty()) refuse("A prompt was given, and ids; give one of them.");
    const PromptReader& reader = bundle_->prompts();
    std::vector<PromptRow> rows(static_cast<size_t>(plan_.rows));
    size_t copies = static_cast<size_t>(plan_.images) / count;
    auto conditional = static_cast<size_t>(plan_.first_conditional);
    size_t unconditional = conditional == 0 ? static_cast<size_t>(plan_.images) : 0;
    for (size_t k = 0; k < static_cast<size_t>(plan_.images); ++k) {
        const accelaes_prompt& own = prompts[k / copies];
        if (own.text == nullptr) refuse("Prompt " + std::to_string(k / copies) + " has no text; give one.");
        rows[conditional + k] = reader.row(own.text, own.text_2, own.text_3, "A prompt");
        if (!plan_.guided) continue;
        const char* negative = own.negative == nullptr ? "" : own.negative;
        rows[unconditional + k] = reader.row(negative, own.negative_2, own.negative_3, "A negative prompt");
    }
    texts = reader.ids(rows);
    encode(texts);
    fill_in();
    if (masked() && !weighed_)
        weigh(reader, {rows.begin() + plan_.first_conditional, rows.begin() + plan_.first_conditional + plan_.images});
    begin();
}

// What the words of each image's prompt weigh.
void Run::weigh(const PromptReader& reader, const std::vector<PromptRow>& prompts) {
    std::vector<float> of_images;
    for (size_t k = 0; k < prompts.size(); ++k) {
        if (k > 0 && prompts[k] == prompts[k - 1]) {
            std::vector<float> same(of_images.end() - text_tokens_, of_images.end());
            of_images.insert(of_images.end(), same.begin(), same.end());
            words_.push_back(words_.back());
            continue;
        }
        auto found = reader.weigh(prompts[k], text_tokens_, plan_.preset->words);
        of_images.insert(of_images.end(), found.weights.begin(), found.weights.end());
        words_.emplace_back();
        for (const auto& [word, weight] : found.words) words_.back().emplace_back(to_utf8(word.text), weight);
    }
    set_weights(of_images.data());
}

// The weights [b, M] of the conditional rows; those of the others are 0. None: all 0.
void Run::set_weights(const float* of_images) {
    size_t numbers = room({plan_.rows, text_tokens_});
    if (weights_.size() != numbers) weights_ = Buffer<float>(device_, numbers);
    device_(&DeviceFunctions::fill, weights_.data(), numbers, 0.0f);
    if (of_images != nullptr)
        device_(&DeviceFunctions::write, weights_.data() + plan_.first_conditional * text_tokens_, of_images,
                sizeof(float) * room({plan_.images, text_tokens_}));
    weighed_ = of_images != nullptr;
}

// What pipelines tell their transformer beside the text: FLUX's distilled guidance, PixArt's size of the picture.
void Run::fill_in() {
    auto put = [&](const char* name, const std::vector<float>& one, bool flat) {
        const auto& wanted = manifest_.conditioning;
        if (given_.count(name) > 0 || std::find(wanted.begin(), wanted.end(), name) == wanted.end()) return;
        std::vector<float> rows;
        for (int64_t row = 0; row < plan_.rows; ++row) rows.insert(rows.end(), one.begin(), one.end());
        const int64_t shape[] = {plan_.rows, static_cast<int64_t>(one.size())};
        take({sizeof(accelaes_tensor), name, 0, rows.data(), shape, flat ? 1 : 2});
    };
    if (!plan_.guided) put("guidance", {plan_.scale}, true);
    auto height = static_cast<float>(manifest_.size_height), width = static_cast<float>(manifest_.size_width);
    put("resolution", {height, width}, false);
    put("aspect_ratio", {height / width}, false);
}

void Run::take_all(const accelaes_tensor* tensors, size_t count, std::map<std::string, Text>& texts) {
    begun_ = has_latents_ = weighed_ = false;
    calls_.clear();
    given_.clear();
    changes_.clear();
    words_.clear();
    text_tokens_ = 0;
    for (size_t k = 0; k < count; ++k) {
        if (tensors[k].name == nullptr || tensors[k].data == nullptr || tensors[k].rank < 0 ||
            (tensors[k].rank > 0 && tensors[k].shape == nullptr)) {
            refuse("Tensor " + std::to_string(k) + " has no name, data or shape; fill in its struct.");
        }
        has_latents_ = has_latents_ || std::strcmp(tensors[k].name, "latents") == 0;
        if (!take_ids(tensors[k], texts)) take(tensors[k]);
    }
}

void Run::begin() {
    if (!has_latents_) {
        std::vector<float> noise(latents_.size());
        draw_latents(manifest_, plan_.seed, plan_.images, noise.data());
        device_(&DeviceFunctions::write, latents_.data(), noise.data(), latents_.bytes());
    }
    for (const auto& name : manifest_.conditioning) {
        if (given_.count(name) == 0)
            refuse("There is no tensor " + name + " among those given, and the engine needs it.");
    }
    if (text_tokens_ == 0) text_tokens_ = manifest_.text_tokens;
    if (masked() && !weighed_) refuse("The preset " + plan_.preset->name + " has a mask: give token_weights [b, M].");
    if (!weighed_) set_weights(nullptr);
    for (size_t k : plan_.left_out()) {
        for (const auto& spec : manifest_.ranges[k].changes) {
            size_t bytes = bytes_of(spec, plan_.rows, manifest_.tokens, text_tokens_);
            changes_[spec.name] = {spec.type, Buffer<char>(device_, bytes), true};
        }
    }
    programs_.begin();
    plan_.solver->begin(device_, latents_.size());
    for (auto& [symbol, sets] : sets_) sets.chosen = false;
    at_ = 0, shown_n_ = 0, shown_ = nullptr;
    stale_ = true, masked_ = false, read_ = nullptr, cancelled_ = false;
    begun_ = true;
}

// Whether it is a tokenizer's, "tokenizer.input_ids" or "tokenizer.attention_mask": [rows, length] int64.
bool Run::take_ids(const accelaes_tensor& tensor, std::map<std::string, Text>& texts) const {
    std::string name = tensor.name;
    auto dot = name.rfind('.');
    std::string kind = dot == std::string::npos ? "" : name.substr(dot + 1);
    if (kind != "input_ids" && kind != "attention_mask") return false;
    if (tensor.rank != 2 || !tensor.is_int64 || tensor.shape[0] != plan_.rows || tensor.shape[1] < 2 ||
        tensor.shape[1] > INT32_MAX)
        refuse(name + " is no int64 [" + std::to_string(plan_.rows) +
               ", length], a row for each of the run's and two ids or more; give it as the tokenizer makes it.");
    Text& text = texts[name.substr(0, dot)];
    if (text.length != 0 && text.length != tensor.shape[1])
        refuse(name + " has another length than the ids beside it; give them as the tokenizer makes them.");
    text.rows = tensor.shape[0], text.length = tensor.shape[1];
    const auto* from = static_cast<const int64_t*>(tensor.data);
    (kind == "input_ids" ? text.ids : text.mask).assign(from, from + text.rows * text.length);
    return true;
}

void Run::encode(std::map<std::string, Text>& texts) {
    for (auto& [tokenizer, text] : texts) {
        if (text.ids.empty())
            refuse("There is a " + tokenizer + ".attention_mask without " + tokenizer + ".input_ids.");
        if (text.mask.empty()) text.mask.assign(text.ids.size(), 1);
    }
    for (const auto& [name, made] : encoded(*bundle_, texts)) {
        if (given_.count(name) > 0) refuse(name + " was given, and ids that it would be made of; give one of them.");
        take({sizeof(accelaes_tensor), name.c_str(), 0, made.data.data(), made.shape.data(),
              static_cast<int>(made.shape.size())});
    }
}

void Run::take(const accelaes_tensor& tensor) {
    std::vector<int64_t> shape(tensor.shape, tensor.shape + tensor.rank);
    std::string name = tensor.name;
    auto said = [&] {
        std::string text = "[";
        for (size_t k = 0; k < shape.size(); ++k) text += (k ? ", " : "") + std::to_string(shape[k]);
        return text + "]";
    };
    if (name == "latents") {
        std::vector<int64_t> wanted = manifest_.latent_shape;
        wanted.insert(wanted.begin(), plan_.images);
        if (shape != wanted || tensor.is_int64)
            refuse("latents has the shape " + said() +
                   ", and the bundle makes others: give fp32 latents of the shape its facts say.");
        device_(&DeviceFunctions::write, latents_.data(), tensor.data, latents_.bytes());
        return;
    }
    if (name == "token_weights") {
        if (shape.size() != 2 || shape[0] != plan_.images || shape[1] < 1 || tensor.is_int64)
            refuse("token_weights has the shape " + said() + "; give fp32 [b, M].");
        take_text(name, shape[1]);
        set_weights(static_cast<const float*>(tensor.data));
        return;
    }
    for (const auto& spec : manifest_.inputs) {
        if (spec.name != name) continue;
        bool fits = spec.shape.size() == shape.size() && spec.is_int64() == (tensor.is_int64 != 0);
        for (size_t k = 0; fits && k < shape.size(); ++k) {
            char letter = spec.shape[k].letter;
            fits = letter == 'B'   ? shape[k] == plan_.rows
                   : letter == 'M' ? shape[k] >= 1 && (manifest_.dynamic_text || shape[k] == manifest_.text_tokens)
                                   : shape[k] == spec.shape[k].fixed;
            if (letter == 'M' && fits) take_text(name, shape[k]);
        }
        if (!fits)
            refuse(name + " has the shape " + said() + ", which the engine doesn't take for " +
                   std::to_string(plan_.rows) + " rows; give it as inspect --tensors lists it.");
        size_t count = room(shape), bytes = width_of(spec.type) * count;
        const void* from = tensor.data;
        std::vector<uint16_t> halves;
        if (!spec.is_int64() && spec.type != Type::f32) {
            halves.resize(count);
            host_functions()->convert(nullptr, halves.data(), spec.type, tensor.data, Type::f32, count);
            from = halves.data();
        }
        Given& given = given_[name] = {spec.type, Buffer<char>(device_, bytes), true};
        given.by_row = !spec.shape.empty() && spec.shape.front().letter == 'B';
        device_(&DeviceFunctions::write, given.data.data(), from, bytes);
        return;
    }
    refuse("There is no input " + name + "; the engine's are those that inspect --tensors lists.");
}

void Run::take_text(const std::string& name, int64_t tokens) {
    if (text_tokens_ != 0 && text_tokens_ != tokens)
        refuse(name + " has " + std::to_string(tokens) + " text tokens, and another tensor has " +
               std::to_string(text_tokens_) + "; give all of one text.");
    text_tokens_ = tokens;
}

}  // namespace accelaes
