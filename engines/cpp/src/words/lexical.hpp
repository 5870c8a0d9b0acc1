// Which words of a prompt belong to an anchor phrase, in any of their common forms.
#pragma once

#include <string>
#include <vector>

#include "words/words.hpp"

namespace accelaes {

// A word's stem after common English endings: the same for the forms of one word.
std::u32string lemma(const std::u32string& word);

// Whether each word is part of an anchor phrase: consecutive words with no punctuation between, whose hyphens, case and
// endings make no difference.
std::vector<bool> anchor_matches(const std::vector<Word>& words, const std::vector<std::u32string>& anchors);

}  // namespace accelaes
