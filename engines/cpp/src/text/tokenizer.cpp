#include "text/tokenizer.hpp"

#include <algorithm>

#include "text/characters.hpp"

namespace accelaes {

// Tokens that are spelt out in a text are taken as they are; where several begin at one place, the longest.
void Tokenizer::split_added(const Characters& text, bool normalized, std::vector<Piece>& pieces) const {
    size_t done = 0;
    auto put = [&](size_t end) {
        auto at = [&](size_t k) { return text.begin() + static_cast<std::ptrdiff_t>(k); };
        if (end > done) pieces.emplace_back(Characters(at(done), at(end)), -1);
    };
    for (size_t first = 0; first < text.size();) {
        const Added* found = nullptr;
        for (const auto& added : added_) {
            size_t count = added.content.size();
            if (added.normalized != normalized || count > text.size() - first) continue;
            if (found != nullptr && found->content.size() >= count) continue;
            bool same = true;
            for (size_t k = 0; same && k < count; ++k) same = text[first + k].c == added.content[k];
            if (same) found = &added;
        }
        if (found == nullptr) {
            ++first;
            continue;
        }
        size_t begin = first, end = first + found->content.size();
        while (found->takes_left && begin > done && is_space(text[begin - 1].c)) --begin;
        while (found->takes_right && end < text.size() && is_space(text[end].c)) ++end;
        put(begin);
        pieces.emplace_back(Characters{{0, text[begin].begin, text[end - 1].end}}, found->id);
        first = done = end;
    }
    put(text.size());
}

void Tokenizer::take(const Characters& text, std::vector<Token>& tokens) const {
    std::vector<Piece> pieces;
    split_added(text, true, pieces);
    for (const auto& [characters, id] : pieces) {
        if (id >= 0) {
            tokens.push_back({id, characters.front().begin, characters.back().end});
            continue;
        }
        std::vector<Characters> parts = {characters};
        for (const auto& split : splits_) {
            std::vector<Characters> smaller;
            for (const auto& part : parts) split(part, smaller);
            parts = std::move(smaller);
        }
        for (const auto& part : parts) {
            if (!part.empty()) model_->take(part, tokens);
        }
    }
}

Tokenized Tokenizer::tokens(const std::u32string& text, bool padded) const {
    Characters whole;
    whole.reserve(text.size());
    for (size_t k = 0; k < text.size(); ++k)
        whole.push_back({text[k], static_cast<int32_t>(k), static_cast<int32_t>(k + 1)});
    std::vector<Piece> pieces;
    split_added(whole, false, pieces);
    std::vector<Token> found;
    for (auto& [characters, id] : pieces) {
        if (id >= 0) {
            found.push_back({id, characters.front().begin, characters.back().end});
            continue;
        }
        for (const auto& change : changes_) change(characters);
        take(characters, found);
    }
    size_t marks = before_.size() + after_.size();
    if (length_ > 0 && found.size() + marks > length_) {
        auto excess = static_cast<std::ptrdiff_t>(found.size() - (length_ > marks ? length_ - marks : 0));
        found.erase(cut_left_ ? found.begin() : found.end() - excess, cut_left_ ? found.begin() + excess : found.end());
    }
    Tokenized made;
    for (int64_t id : before_) made.tokens.push_back({id, 0, 0});
    made.tokens.insert(made.tokens.end(), found.begin(), found.end());
    for (int64_t id : after_) made.tokens.push_back({id, 0, 0});
    made.mask.assign(made.tokens.size(), 1);
    size_t wanted = std::max(made.tokens.size(), padded_);
    if (padded_to_ > 0) wanted = (wanted + padded_to_ - 1) / padded_to_ * padded_to_;
    if (padded && wanted > made.tokens.size()) {
        size_t more = wanted - made.tokens.size();
        made.tokens.insert(pad_left_ ? made.tokens.begin() : made.tokens.end(), more, {pad_id_, 0, 0});
        made.mask.insert(pad_left_ ? made.mask.begin() : made.mask.end(), more, 0);
    }
    return made;
}

}  // namespace accelaes
