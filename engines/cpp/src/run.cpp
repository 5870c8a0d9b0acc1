#include "run.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "failure.hpp"
#include "noise.hpp"
#include "patches.hpp"
#include "prompts.hpp"
#include "room.hpp"
#include "rows.hpp"
#include "text/characters.hpp"

namespace accelaes {
namespace {

size_t product(const std::vector<int64_t>& shape) {
    size_t count = 1;
    for (int64_t size : shape) count *= static_cast<size_t>(size);
    return count;
}

}  // namespace

Run::Run(std::shared_ptr<const Bundle> bundle, RunPlan plan)
    : bundle_(std::move(bundle)),
      manifest_(bundle_->manifest),
      plan_(std::move(plan)),
      programs_(*bundle_, *plan_.preset, plan_.rows, plan_.images, plan_.first_conditional, plan_.gated),
      cache_(manifest_, plan_.rows, plan_.most_focus(manifest_), plan_.most_background(manifest_),
             plan_.preset->has("carry")) {
    auto rows = static_cast<size_t>(plan_.rows), images = static_cast<size_t>(plan_.images);
    auto N = static_cast<size_t>(manifest_.tokens), w = static_cast<size_t>(manifest_.token_width());
    int64_t width = manifest_.token_width(), tokens = manifest_.tokens, latent = plan_.latent(manifest_);
    latents_.resize(room({plan_.images, latent}));
    plan_.solver->begin(latents_.size());  // takes its memory
    twice_.resize(room({plan_.rows, latent}));
    timestep_.resize(rows);
    computed_.resize(room({plan_.rows, tokens, width}));
    predicted_.resize(computed_.size());
    guided_.resize(room({plan_.images, tokens, width}));
    focus_rows_.resize(room({plan_.rows, plan_.most_focus(manifest_), width}));
    background_rows_.resize(room({plan_.rows, plan_.most_background(manifest_), width}));
    for (auto* of_tokens : {&running_, &cached_, &distance_, &affinity_rows_})
        of_tokens->resize(room({plan_.rows, tokens}));
    for (auto* of_images : {&affinity_, &mask_, &score_}) of_images->resize(room({plan_.images, tokens}));
    everything_.resize(running_.size());
    observed_.resize(running_.size());
    order_.reserve(N);
    for (size_t k = 0; k < rows * N; ++k) everything_[k] = observed_[k] = static_cast<int64_t>(k % N);
    for (char symbol : plan_.symbols) {
        if (symbol < 'a') continue;
        Sets& sets = sets_[symbol];
        sets.n = plan_.focus_of(symbol, manifest_);
        sets.focus.resize(rows * static_cast<size_t>(sets.n));
        sets.background.resize(rows * (N - static_cast<size_t>(sets.n)));
    }
    shown_focus_.reserve(images * N);
    size_t half = images * N * w, uncond = manifest_.layout == Layout::uncond_cond ? 0 : half;
    programs_.place("computed", computed_.data());
    programs_.place("running", running_.data());
    programs_.place("cached", cached_.data());
    programs_.place("now", &now_);
    programs_.place("target", &target_);
    programs_.place("predicted", predicted_.data());
    programs_.place("score", score_.data());
    programs_.place("affinity", affinity_.data());
    programs_.place("mask", mask_.data());
    programs_.place("distance", distance_.data());
    programs_.place("scale", &plan_.scale);
    programs_.place("uncond", predicted_.data() + (plan_.guided ? uncond : 0));
    programs_.place("cond", predicted_.data() + (plan_.guided ? half - uncond : 0));
    programs_.place("guided", guided_.data());
    programs_.place("latents", twice_.data());
    programs_.place("prediction", predicted_.data());
    programs_.place("step", &step_);
    programs_.place("wanted", &wanted_);
    programs_.bind();
}

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
    if (masked() && weights_.empty()) {
        weights_.assign(static_cast<size_t>(plan_.rows * text_tokens_), 0.0f);
        for (size_t k = 0; k < static_cast<size_t>(plan_.images); ++k) {
            bool same = k > 0 && rows[conditional + k] == rows[conditional + k - 1];
            auto to =
                weights_.begin() + static_cast<std::ptrdiff_t>((conditional + k) * static_cast<size_t>(text_tokens_));
            if (same) {
                std::copy_n(to - text_tokens_, text_tokens_, to);
                words_.push_back(words_.back());
                continue;
            }
            auto found = reader.weigh(rows[conditional + k], text_tokens_, plan_.preset->words);
            std::copy(found.weights.begin(), found.weights.end(), to);
            words_.emplace_back();
            for (const auto& [word, weight] : found.words) words_.back().emplace_back(to_utf8(word.text), weight);
        }
    }
    begin();
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
    begun_ = has_latents_ = false;
    given_.clear();
    weights_.clear();
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
    if (!has_latents_) draw_latents(manifest_, plan_.seed, plan_.images, latents_.data());
    for (const auto& name : manifest_.conditioning) {
        if (given_.count(name) == 0)
            refuse("There is no tensor " + name + " among those given, and the engine needs it.");
    }
    if (text_tokens_ == 0) text_tokens_ = manifest_.text_tokens;
    if (masked() && weights_.empty())
        refuse("The preset " + plan_.preset->name + " has a mask: give token_weights [b, M].");
    weights_.resize(static_cast<size_t>(plan_.rows * text_tokens_), 0.0f);
    programs_.begin();
    plan_.solver->begin(latents_.size());
    for (auto& [symbol, sets] : sets_) sets.chosen = false;
    at_ = 0, shown_n_ = 0;
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

void Run::picture(uint8_t* pixels, size_t size) const {
    if (!manifest_.vae)
        refuse(
            "The bundle has no VAE to make pictures with; take the latents, or build it again with --components vae.");
    size_t wanted = room({plan_.images, manifest_.picture_height, manifest_.picture_width, 3});
    if (size != wanted)
        refuse("The pictures are " + std::to_string(wanted) + " bytes, [b, height, width, 3], and there is room for " +
               std::to_string(size) + ".");
    if (!begun_) refuse("The run has no latents yet; give its input first.");
    decode(*bundle_, latents_, plan_.images, pixels);
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
        std::memcpy(latents_.data(), tensor.data, sizeof(float) * latents_.size());
        return;
    }
    if (name == "token_weights") {
        if (shape.size() != 2 || shape[0] != plan_.images || shape[1] < 1 || tensor.is_int64)
            refuse("token_weights has the shape " + said() + "; give fp32 [b, M].");
        weights_.assign(static_cast<size_t>(plan_.rows * shape[1]), 0.0f);
        auto first = static_cast<size_t>(plan_.first_conditional * shape[1]);
        std::memcpy(weights_.data() + first, tensor.data, sizeof(float) * product(shape));
        take_text(name, shape[1]);
        return;
    }
    for (const auto& spec : manifest_.inputs) {
        if (spec.name != name) continue;
        bool fits = spec.shape.size() == shape.size() && spec.int64 == (tensor.is_int64 != 0);
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
        Given& given = given_[name];
        given.shape = shape;
        given.by_row = !spec.shape.empty() && spec.shape.front().letter == 'B';
        size_t count = product(shape);
        if (spec.int64) {
            auto* from = static_cast<const int64_t*>(tensor.data);
            given.labels.assign(from, from + count);
        } else {
            auto* from = static_cast<const float*>(tensor.data);
            given.numbers.assign(from, from + count);
        }
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

double Run::clock(int64_t i) const {
    return plan_.preset->by_sigma ? plan_.solver->sigmas()[static_cast<size_t>(i)] : static_cast<double>(i);
}

double Run::target(int64_t i) const {
    double now = clock(i);
    if (plan_.preset->theta == 0 || plan_.steps() < 2 || !plan_.solver->first_order()) return now;
    return now + plan_.preset->theta * (i + 1 < plan_.steps() ? clock(i + 1) - now : now - clock(i - 1));
}

bool Run::next(accelaes_step* step) {
    if (!begun_) refuse("The run has no input yet; call accelaes_run_input first.");
    if (at_ >= plan_.steps())
        refuse("The run has carried out all of its " + std::to_string(plan_.steps()) + " steps; give it new input.");
    if (cancelled_) throw Failure(ACCELAES_FAILED, "The run was cancelled before step " + std::to_string(at_) + ".");
    double begun = seconds();
    engine_seconds_ = 0;
    int64_t i = at_;
    char symbol = plan_.symbols[static_cast<size_t>(i)];
    now_ = static_cast<float>(clock(i)), target_ = static_cast<float>(target(i)), step_ = static_cast<float>(i);
    auto latent = static_cast<size_t>(plan_.latent(manifest_));
    for (int64_t row = 0; row < plan_.rows; ++row) {
        auto image = static_cast<size_t>(row % plan_.images);
        std::memcpy(twice_.data() + static_cast<size_t>(row) * latent, latents_.data() + image * latent,
                    sizeof(float) * latent);
    }
    std::fill(timestep_.begin(), timestep_.end(), plan_.solver->timesteps()[static_cast<size_t>(i)]);
    bool had_mask = masked_;
    if (programs_.has("decide")) {
        programs_.run("decide");
        if (wanted_ == 0 && i + 1 < plan_.steps()) symbol = '.';
    }
    if (symbol == 'D') {
        dense(i);
    } else if (symbol != '.') {
        sparse(sets_.at(symbol));
    }
    programs_.run("extrapolate");
    if (symbol != '.' && programs_.has("observe")) programs_.run("observe");
    bool by_region = had_mask && plan_.guided && !plan_.two_calls && programs_.has("guide_by_region");
    programs_.run(by_region ? "guide_by_region" : "guide");
    guide_and_move(i);
    ++at_;
    if (step != nullptr) {
        step->index = static_cast<int>(i);
        step->symbol = symbol;
        step->tokens = static_cast<int>(plan_.focus_of(symbol, manifest_));
        step->seconds = seconds() - begun;
        step->engine_seconds = engine_seconds_;
    }
    return at_ < plan_.steps();
}

void Run::guide_and_move(int64_t i) {
    unpatchify(manifest_, guided_.data(), plan_.images, predicted_.data());
    plan_.solver->move(i, predicted_.data(), latents_);
}

void Run::dense(int64_t i) {
    bool observed = plan_.preset->focus && plan_.preset->focus->mask_step == i;
    cache_.put_by();
    engine_call({everything_.data(), everything_.data(), manifest_.tokens, computed_.data(), observed, true, true});
    stale_ = true;
    if (observed) build_mask();
    std::fill(cached_.begin(), cached_.end(), 1.0f);
    programs_.run("advance");
}

void Run::build_mask() {
    int64_t N = manifest_.tokens;
    auto first = static_cast<size_t>(plan_.first_conditional * N);
    std::memcpy(affinity_.data(), affinity_rows_.data() + first, sizeof(float) * affinity_.size());
    auto n = static_cast<int64_t>(std::floor(static_cast<double>(N) * plan_.preset->focus->fraction + 0.5));
    n = std::min(std::max(n, int64_t{1}), N);
    std::vector<int64_t> chosen(static_cast<size_t>(N));
    std::fill(mask_.begin(), mask_.end(), 0.0f);
    for (int64_t image = 0; image < plan_.images; ++image) {
        choose(affinity_.data() + image * N, N, n, order_, chosen.data(), chosen.data() + n);
        for (int64_t k = 0; k < n; ++k) mask_[static_cast<size_t>(image * N + chosen[static_cast<size_t>(k)])] = 1.0f;
    }
    for (auto& [symbol, sets] : sets_) sets.chosen = false;
    masked_ = true;
}

void Run::choose_tokens(Sets& sets) {
    programs_.run("score");
    int64_t N = manifest_.tokens, n = sets.n, m = N - n;
    for (int64_t image = 0; image < plan_.images; ++image) {
        choose(score_.data() + image * N, N, n, order_, sets.focus.data() + image * n,
               sets.background.data() + image * m);
    }
    for (int64_t row = plan_.images; row < plan_.rows; ++row) {
        int64_t image = row % plan_.images;
        std::copy_n(sets.focus.data() + image * n, n, sets.focus.data() + row * n);
        std::copy_n(sets.background.data() + image * m, m, sets.background.data() + row * m);
    }
    sets.chosen = true;
    stale_ = true;
}

void Run::sparse(Sets& sets) {
    int64_t N = manifest_.tokens, w = manifest_.token_width(), n = sets.n, m = N - n;
    bool moving = plan_.preset->focus->moving;
    if (moving || !sets.chosen) choose_tokens(sets);
    bool carried = programs_.has("carry");
    if (carried) programs_.run("carry");
    if (stale_ || carried || read_ != &sets)
        cache_.read(sets.background.data(), m, carried ? distance_.data() : nullptr);
    stale_ = false, read_ = &sets;
    engine_call({sets.focus.data(), sets.background.data(), n, focus_rows_.data(), false, moving, false});
    if (moving) {
        cache_.write(sets.focus.data(), n);
        stale_ = true;
    }
    scatter(computed_.data(), plan_.rows, N, w, sets.focus.data(), n, focus_rows_.data());
    for (const auto& spec : manifest_.outputs) {
        if (spec.name == "background_prediction")
            scatter(computed_.data(), plan_.rows, N, w, sets.background.data(), m, background_rows_.data());
    }
    std::fill(running_.begin(), running_.end(), 0.0f);
    for (int64_t row = 0; row < plan_.rows; ++row) {
        for (int64_t k = 0; k < n; ++k)
            running_[static_cast<size_t>(row * N + sets.focus[static_cast<size_t>(row * n + k)])] = 1.0f;
    }
    if (moving) {
        cached_ = running_;
    } else {
        std::fill(cached_.begin(), cached_.end(), 0.0f);
    }
    programs_.run("advance_focus");
    shown_n_ = n;
    shown_focus_.assign(sets.focus.begin(), sets.focus.begin() + plan_.images * n);
}

}  // namespace accelaes
