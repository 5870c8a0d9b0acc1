#include "words/lexical.hpp"

#include <algorithm>
#include <array>
#include <string_view>
#include <unordered_set>

#include "text/characters.hpp"

namespace accelaes {
namespace {

using View = std::u32string_view;

constexpr View inner = U"-\u2010\u2011_\u00ad\u200c\u200d";

struct Ending {
    View ending, instead;
};
constexpr std::array<Ending, 8> endings = {{{U"ically", U"ic"},
                                            {U"ally", U"al"},
                                            {U"ly", U""},
                                            {U"ness", U""},
                                            {U"ing", U""},
                                            {U"ed", U""},
                                            {U"est", U""},
                                            {U"er", U""}}};

bool ends(View word, View ending) {
    return word.size() >= ending.size() && word.substr(word.size() - ending.size()) == ending;
}

bool ends(View word, std::initializer_list<View> any) {
    return std::any_of(any.begin(), any.end(), [&](View ending) { return ends(word, ending); });
}

void drop(std::u32string& word, size_t count) { word.resize(word.size() - count); }

// Stunned is a person's state and stunning a picture's: cut to one stem they would meet.
bool kept_whole(std::u32string& stem) {
    if (stem == U"people")
        stem = U"person";
    else if (stem != U"stunning")
        return false;
    return true;
}

void make_singular(std::u32string& word) {
    if (word.size() > 4 && ends(word, U"ies")) {
        drop(word, 3);
        word += U'y';
    } else if (word.size() > 4 && ends(word, {U"sses", U"shes", U"ches", U"xes", U"uses"})) {
        drop(word, 2);
    } else if (word.size() > 2 && ends(word, U"s") && !ends(word, {U"ss", U"us", U"is"})) {
        drop(word, 1);
    }
}

// The pieces of a word or phrase between blanks, hyphens and underscores.
std::vector<std::u32string> parts_of(const std::u32string& text) {
    std::vector<std::u32string> parts(1);
    for (char32_t c : text) {
        if (!is_blank(c) && inner.find(c) == inner.npos) {
            parts.back() += c;
        } else if (!parts.back().empty()) {
            parts.emplace_back();
        }
    }
    if (parts.back().empty()) parts.pop_back();
    return parts;
}

using Parts = std::vector<std::u32string>;

// What two spellings of a phrase share: all parts as stems, or (for "closeups") only the last one, run together.
std::array<std::u32string, 2> keys_of(Parts::const_iterator first, Parts::const_iterator last) {
    std::array<std::u32string, 2> keys;
    for (auto part = first; part != last; ++part) {
        keys[0] += lemma(*part);
        keys[1] += part + 1 == last ? lemma(*part) : folded(*part);
    }
    return keys;
}

}  // namespace

std::u32string lemma(const std::u32string& word) {
    std::u32string stem = folded(word);
    std::replace(stem.begin(), stem.end(), U'\u2019', U'\'');
    if (ends(stem, U"'s")) drop(stem, 2);
    stem.erase(std::remove(stem.begin(), stem.end(), U'\''), stem.end());
    if (kept_whole(stem)) return stem;
    make_singular(stem);
    for (int round = 0; round < 2; ++round) {  // "detailedly", "vibrantly": an adverb's ending, then the participle's
        for (const auto& [ending, instead] : endings) {
            if (!ends(stem, ending)) continue;
            std::u32string base = stem.substr(0, stem.size() - ending.size());
            base += instead;
            if (base.size() >= 4 && base.find_first_of(U"aeiouy") != base.npos) {
                stem = std::move(base);
                break;
            }
        }
        if (kept_whole(stem)) return stem;
    }
    if (stem.size() > 4) {
        char32_t last = stem.back();
        if (last == stem[stem.size() - 2] && View(U"aeiousl").find(last) == View::npos) drop(stem, 1);  // bigg(er)
    }
    if (stem.size() > 3 && stem.back() == U'e') drop(stem, 1);
    return stem;
}

std::vector<bool> anchor_matches(const std::vector<Word>& words, const std::vector<std::u32string>& anchors) {
    std::unordered_set<std::u32string> wanted;
    size_t longest = 0;
    for (const auto& anchor : anchors) {
        Parts parts = parts_of(anchor);
        longest = std::max(longest, parts.size() + 1);  // "photo realistic" is one part longer
        if (parts.empty()) continue;
        for (auto& key : keys_of(parts.begin(), parts.end())) wanted.insert(std::move(key));
    }
    Parts parts;
    std::vector<size_t> of;
    for (size_t k = 0; k < words.size(); ++k) {
        for (auto& part : parts_of(words[k].text)) {
            parts.push_back(std::move(part));
            of.push_back(k);
        }
    }
    std::vector<bool> found(words.size(), false);
    for (size_t first = 0; first < parts.size(); ++first) {
        for (size_t last = first; last < std::min(first + longest, parts.size()); ++last) {
            if (words[of[first]].clause != words[of[last]].clause) break;
            auto at = [&](size_t k) { return parts.cbegin() + static_cast<std::ptrdiff_t>(k); };
            auto keys = keys_of(at(first), at(last + 1));
            if (wanted.count(keys[0]) == 0 && wanted.count(keys[1]) == 0) continue;
            for (size_t k = first; k <= last; ++k) found[of[k]] = true;
        }
    }
    return found;
}

}  // namespace accelaes
