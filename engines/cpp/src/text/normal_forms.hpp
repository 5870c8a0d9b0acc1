// What tokenizers make of a text before it is taken apart.
#pragma once

#include <string>
#include <vector>

#include "text/pattern.hpp"
#include "text/tokenizer.hpp"

namespace accelaes {

// Unicode's composed form, NFC, or with `compatibility` NFKC.
void compose(Characters& text, bool compatibility);
// Characters of more than one in small letters (I with a dot above) are made several.
void make_lower(Characters& text);
// Every match of a pattern becomes `instead`.
void replace(Characters& text, const Pattern& pattern, const std::u32string& instead);

// SentencePiece's table of what characters, and groups of characters drawn as one, become.
class Replacements {
   public:
    // `table`: the length of a double-array trie in bytes, the trie, and texts that end with a zero byte.
    explicit Replacements(const std::string& table);
    void apply(Characters& text) const;

   private:
    // What the shortest beginning of `bytes` that is in the table becomes; null where none is.
    const char* find(const std::string& bytes) const;

    std::vector<uint32_t> trie_;
    std::string texts_;
};

}  // namespace accelaes
