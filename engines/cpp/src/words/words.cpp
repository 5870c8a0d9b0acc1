#include "words/words.hpp"

#include <algorithm>
#include <string_view>
#include <unordered_set>

#include "text/characters.hpp"
#include "words/notation.hpp"

namespace accelaes {
namespace {

constexpr std::u32string_view joiners = U"-\u2010\u2011'\u2019_\u00ad\u200c\u200d";

constexpr std::u32string_view stop_words =
#include "words/stop_words.inc"
    ;

std::unordered_set<std::u32string> listed(std::u32string_view words) {
    std::unordered_set<std::u32string> found;
    while (!words.empty()) {
        auto blank = std::min(words.find(U' '), words.size());
        if (blank > 0) found.insert(std::u32string(words.substr(0, blank)));
        words.remove_prefix(std::min(blank + 1, words.size()));
    }
    return found;
}

bool is_part(char32_t c) { return is_letter(c) || is_number(c) || is_mark(c); }

// Whether the character at `at`, which is none of a word by itself, joins what is before and behind it.
bool joins(const std::u32string& prompt, size_t at) {
    if (joiners.find(prompt[at]) != joiners.npos) return true;
    return (prompt[at] == U'.' || prompt[at] == U',') && is_digit(prompt[at - 1]) && is_digit(prompt[at + 1]);
}

}  // namespace

bool is_stop_word(const std::u32string& word) {
    static const auto known = listed(stop_words);
    std::u32string plain = folded(word);
    std::replace(plain.begin(), plain.end(), U'\u2019', U'\'');
    if (known.count(plain) > 0) return true;
    bool owned = plain.size() >= 2 && plain.compare(plain.size() - 2, 2, U"'s") == 0;
    return owned && known.count(plain.substr(0, plain.size() - 2)) > 0;
}

std::vector<Word> split_words(const std::u32string& given) {
    std::u32string prompt = without_notation(given);
    std::vector<Word> words;
    int clause = 0, phrase = 0;
    size_t end = 0;
    bool after_stop = false;
    for (size_t i = 0; i < prompt.size();) {
        if (!is_part(prompt[i])) {
            ++i;
            continue;
        }
        size_t start = i;
        while (i < prompt.size() &&
               (is_part(prompt[i]) || (i + 1 < prompt.size() && is_part(prompt[i + 1]) && joins(prompt, i))))
            ++i;
        bool interrupted = false;
        for (size_t k = end; k < start; ++k)
            interrupted = interrupted || prompt[k] == U'\n' || prompt[k] == U'\r' || !is_blank(prompt[k]);
        clause += interrupted;
        end = i;
        std::u32string text = prompt.substr(start, end - start);
        bool stop = is_stop_word(text);
        phrase += interrupted || after_stop;
        words.push_back({std::move(text), start, end, stop, clause, stop ? -1 : phrase});
        after_stop = stop;
    }
    return words;
}

std::vector<WeighedWord> weigh_words(const std::u32string& prompt, const Scorer& scorer, const WordScoring& scoring,
                                     const std::vector<bool>& read) {
    std::vector<Word> words = split_words(prompt);
    std::vector<double> scores = words.empty() ? std::vector<double>() : scorer(words);
    std::vector<WeighedWord> known, content;
    for (size_t k = 0; k < words.size(); ++k) {
        bool seen = read.empty();
        for (size_t at = words[k].start; at < words[k].end && !seen; ++at) seen = read[at];
        if (!seen) continue;
        known.push_back({words[k], scores[k]});
        if (!words[k].stop) content.push_back(known.back());
    }
    for (auto& [word, weight] : content) weight = weight >= scoring.threshold ? std::min(weight, 1.0) : 0.0;
    if (scoring.scope == "phrase" || scoring.scope == "others") {
        for (size_t first = 0; first < content.size();) {  // the largest of a phrase, whose words stand together
            size_t last = first;
            double most = 0;
            for (; last < content.size() && content[last].word.phrase == content[first].word.phrase; ++last)
                most = std::max(most, content[last].weight);
            for (; first < last; ++first) content[first].weight = most;
        }
    }
    auto any = [&] {
        return std::any_of(content.begin(), content.end(), [](const auto& one) { return one.weight != 0; });
    };
    bool aesthetic = any();
    for (auto& [word, weight] : content) {
        if (scoring.scope == "others") weight = weight != 0 ? 0.0 : 1.0;
        if (scoring.scope == "all") weight = 1.0;
    }
    if (!aesthetic || !any()) {  // no word says anything of looks: all weigh alike
        if (content.empty()) content = std::move(known);
        for (auto& one : content) one.weight = 1.0;
    }
    return content;
}

}  // namespace accelaes
