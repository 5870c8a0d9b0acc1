// Prompt words and their weights alpha (AccelAes, Eq. 4-5), as accelaes_export/policies/words.py has them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace accelaes {

// `phrase` -1: a stop word. Places are characters.
struct Word {
    std::u32string text;
    size_t start, end;
    bool stop;
    int clause, phrase;
};

struct WeighedWord {
    Word word;
    double weight;
};

bool is_stop_word(const std::u32string& word);
std::vector<Word> split_words(const std::u32string& prompt);

// Alpha of each word, at most 1.
using Scorer = std::function<std::vector<double>(const std::vector<Word>&)>;

// The content words that are read, and alpha of each. `read`: whether an encoder reads each of the prompt's characters;
// empty: all are.
std::vector<WeighedWord> weigh_words(const std::u32string& prompt, const Scorer& scorer, const WordScoring& scoring,
                                     const std::vector<bool>& read);

}  // namespace accelaes
