#include "prompts.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "failure.hpp"
#include "text/characters.hpp"
#include "words/lexical.hpp"

namespace accelaes {
namespace {

// As diffusers numbers them.
const std::array<const char*, 3> names = {"tokenizer", "tokenizer_2", "tokenizer_3"};
constexpr size_t longest = 1 << 20;  // bytes of a prompt

std::u32string cleaned(const char* text, Cleaning cleaning, const char* what) {
    std::string given = text;
    if (given.size() > longest)
        refuse(std::string(what) + " has " + std::to_string(given.size()) + " bytes; give at most a million.");
    std::u32string prompt = from_utf8(given, what);
    return cleaning == Cleaning::lower ? stripped(lowered(prompt)) : prompt;
}

}  // namespace

PromptReader::PromptReader(const Bundle& bundle) : bundle_(bundle) {
    const Manifest& manifest = bundle.manifest;
    if (manifest.encoders.empty())
        refuse(
            "A prompt was given, and the bundle has no text encoders; give the conditioning itself, or build it again "
            "with --components all.");
    bool wrapped = std::any_of(manifest.text.begin(), manifest.text.end(), [](const auto& run) { return run.wrapped; });
    if (manifest.cleaning == Cleaning::other || wrapped)
        refuse(
            "The bundle's pipeline rewrites prompts before it reads them, which this runtime doesn't do; give the ids "
            "of its tokenizers.");
    for (const auto& [name, file] : manifest.tokenizers)
        tokenizers_[name] = std::make_unique<const Tokenizer>(bundle.file(file));
    for (const auto& encoder : manifest.encoders) tokenizer(encoder.tokenizer);
    for (const auto& anchor : manifest.anchors) {
        anchors_.push_back(from_utf8(anchor, "An anchor of the bundle"));
        std::u32string inside = stripped(anchors_.back());
        if (std::any_of(inside.begin(), inside.end(), is_blank)) long_anchors_.push_back(anchors_.back());
    }
    for (const auto& encoder : manifest.encoders) {
        if (manifest.scored_by_clip && encoder.name == "text_encoder" && encoder.tokenizer == "tokenizer")
            clip_ = &encoder;
    }
    if (clip_ != nullptr) anchors_seen_ = embed(anchors_);
}

const Tokenizer& PromptReader::tokenizer(const std::string& name) const {
    auto found = tokenizers_.find(name);
    if (found == tokenizers_.end())
        refuse("The bundle has no " + name +
               " that this runtime can read; give its ids, or build the bundle again with --components all.");
    return *found->second;
}

PromptRow PromptReader::row(const char* first, const char* second, const char* third, const char* what) const {
    std::array<const char*, 3> given = {first, second == nullptr ? first : second, third == nullptr ? first : third};
    PromptRow row;
    for (size_t k = 0; k < names.size(); ++k) row[names[k]] = cleaned(given[k], bundle_.manifest.cleaning, what);
    return row;
}

std::map<std::string, Text> PromptReader::ids(const std::vector<PromptRow>& rows) const {
    std::map<std::string, Text> texts;
    for (const auto& encoder : bundle_.manifest.encoders) {
        Text& text = texts[encoder.tokenizer];
        if (text.rows > 0) continue;
        std::vector<Tokenized> found;
        for (const auto& row : rows) {
            auto own = row.find(encoder.tokenizer);
            if (own == row.end()) refuse("The bundle's " + encoder.tokenizer + " is one that prompts don't name.");
            found.push_back(tokenizer(encoder.tokenizer).tokens(own->second));
            if (found.back().tokens.size() != found.front().tokens.size())
                refuse("The bundle's " + encoder.tokenizer + " gives texts of several lengths; give its ids, padded.");
        }
        text.rows = static_cast<int64_t>(rows.size());
        text.length = static_cast<int64_t>(found.front().tokens.size());
        for (const auto& one : found) {
            for (const auto& token : one.tokens) text.ids.push_back(token.id);
            text.mask.insert(text.mask.end(), one.mask.begin(), one.mask.end());
        }
    }
    return texts;
}

WeighedPrompt PromptReader::weigh(const PromptRow& row, int64_t text_tokens, const WordScoring& scoring) const {
    struct Placed {
        const std::u32string* prompt;
        size_t first;
        std::vector<Token> tokens;
    };
    std::vector<Placed> placed;
    std::map<std::u32string, std::vector<bool>> read;  // by prompt, the characters that an encoder reads
    size_t first = 0, all = static_cast<size_t>(text_tokens);
    for (const auto& run : bundle_.manifest.text) {
        bool last = &run == &bundle_.manifest.text.back();
        size_t length = last ? all - std::min(first, all) : static_cast<size_t>(run.length);
        for (const auto& name : run.tokenizers) {
            auto own = tokenizers_.find(name);
            auto text = row.find(name);
            if (own == tokenizers_.end() || text == row.end()) continue;  // saved without: its positions weigh nothing
            Placed one{&text->second, first, own->second->tokens(text->second).tokens};
            one.tokens.resize(std::min(one.tokens.size(), length));
            auto& seen = read[text->second];
            seen.resize(std::max(text->second.size(), size_t{1}));
            for (const auto& token : one.tokens) {
                for (int32_t at = token.begin; at < token.end; ++at) seen[static_cast<size_t>(at)] = true;
            }
            placed.push_back(std::move(one));
        }
        first += length;
    }
    auto scorer = [this](const std::vector<Word>& words) { return score(words); };
    auto words_of = [&](const std::u32string& prompt) {
        auto seen = read.find(prompt);
        return weigh_words(prompt, scorer, scoring, seen == read.end() ? std::vector<bool>() : seen->second);
    };
    WeighedPrompt made;
    made.weights.assign(all, 0.0f);
    auto put = [&](const Placed& one, const std::vector<float>& of_character) {
        for (size_t k = 0; k < one.tokens.size() && one.first + k < all; ++k) {
            float& weight = made.weights[one.first + k];
            for (int32_t at = one.tokens[k].begin; at < one.tokens[k].end; ++at)
                weight = std::max(weight, of_character[static_cast<size_t>(at)]);
        }
    };
    std::map<std::u32string, std::vector<WeighedWord>> known;
    for (const auto& one : placed) {
        auto [words, fresh] = known.try_emplace(*one.prompt);
        if (fresh) words->second = words_of(*one.prompt);
        std::vector<float> of_character(one.prompt->size(), 0.0f);
        for (const auto& [word, weight] : words->second)
            std::fill(of_character.begin() + static_cast<std::ptrdiff_t>(word.start),
                      of_character.begin() + static_cast<std::ptrdiff_t>(word.end), static_cast<float>(weight));
        put(one, of_character);
    }
    auto& weights = made.weights;
    if (std::all_of(weights.begin(), weights.end(), [](float weight) { return weight == 0; })) {
        for (const auto& one : placed) put(one, std::vector<float>(one.prompt->size(), 1.0f));
    }
    if (std::all_of(weights.begin(), weights.end(), [&](float weight) { return weight == weights.front(); }))
        refuse("Nothing in the prompt \"" + to_utf8(row.at(names[0]).substr(0, 40)) +
               "\" can weigh more than the rest; take a preset without a mask, or give token_weights.");
    auto words = known.find(row.at(names[0]));
    made.words = words == known.end() ? words_of(row.at(names[0])) : words->second;
    return made;
}

std::vector<double> PromptReader::score(const std::vector<Word>& words) const {
    std::vector<double> alpha(words.size(), 0.0);
    auto spelled = anchor_matches(words, clip_ == nullptr ? anchors_ : long_anchors_);
    if (clip_ != nullptr) {
        std::vector<std::u32string> texts;
        for (const auto& word : words) texts.push_back(word.text);
        auto seen = embed(texts);
        for (size_t k = 0; k < words.size(); ++k) {
            double most = -1;
            for (const auto& anchor : anchors_seen_) {
                double cosine = 0;
                for (size_t at = 0; at < anchor.size(); ++at) cosine += anchor[at] * seen[k][at];
                most = std::max(most, cosine);
            }
            alpha[k] = most;
        }
    }
    for (size_t k = 0; k < words.size(); ++k) alpha[k] = std::max(alpha[k], spelled[k] ? 1.0 : alpha[k]);
    return alpha;
}

std::vector<std::vector<double>> PromptReader::embed(const std::vector<std::u32string>& texts) const {
    const Tokenizer& own = tokenizer(clip_->tokenizer);
    std::map<std::u32string, std::vector<double>> seen;
    std::vector<std::u32string> each;
    for (const auto& text : texts) {
        if (seen.try_emplace(text).second) each.push_back(text);
    }
    for (size_t first = 0; first < each.size(); first += static_cast<size_t>(clip_->rows)) {
        size_t last = std::min(each.size(), first + static_cast<size_t>(clip_->rows)), length = 2;
        std::vector<Tokenized> found;
        for (size_t k = first; k < last; ++k) {
            found.push_back(own.tokens(each[k], false));
            length = std::max(length, found.back().tokens.size());
        }
        Text batch;
        batch.rows = static_cast<int64_t>(found.size()), batch.length = static_cast<int64_t>(length);
        for (auto& one : found) {
            one.tokens.resize(length, {own.padding(), 0, 0});
            one.mask.resize(length, 0);
            for (const auto& token : one.tokens) batch.ids.push_back(token.id);
            batch.mask.insert(batch.mask.end(), one.mask.begin(), one.mask.end());
        }
        auto outputs = run_encoder(bundle_, *clip_, batch);
        auto states = outputs.find("last_hidden_state");
        if (states == outputs.end() || states->second.shape.size() != 3)
            refuse("The bundle's text_encoder doesn't say what words look like; build it again.");
        auto width = static_cast<size_t>(states->second.shape[2]);
        for (size_t k = 0; k < found.size(); ++k) {
            std::vector<double> mean(width, 0.0);
            for (size_t place = 0; place < length; ++place) {
                if (found[k].tokens[place].begin == found[k].tokens[place].end) continue;  // marks and padding
                const float* state = states->second.data.data() + (k * length + place) * width;
                for (size_t at = 0; at < width; ++at) mean[at] += static_cast<double>(state[at]);
            }
            double norm = 0;
            for (double number : mean) norm += number * number;
            for (double& number : mean) number /= std::max(std::sqrt(norm), 1e-12);
            seen[each[first + k]] = std::move(mean);
        }
    }
    std::vector<std::vector<double>> made;
    for (const auto& text : texts) made.push_back(seen.at(text));
    return made;
}

}  // namespace accelaes
