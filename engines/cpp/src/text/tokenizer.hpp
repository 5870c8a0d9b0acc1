// Tokenizers as the tokenizers library writes them (tokenizer.json): CLIP's byte-pair encoding and T5's unigram model.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace accelaes {

// A character of a text that is being taken apart, and the characters of the given text it comes of.
struct Character {
    char32_t c;
    int32_t begin, end;
};
using Characters = std::vector<Character>;

// `begin` = `end`: of no character, as what marks the text's ends and fills it up.
struct Token {
    int64_t id;
    int32_t begin, end;
};

// What pieces of a text are as tokens.
class TokenModel {
   public:
    virtual ~TokenModel() = default;
    virtual void take(const Characters& piece, std::vector<Token>& tokens) const = 0;
};

struct Tokenized {
    std::vector<Token> tokens;
    std::vector<int64_t> mask;  // 0 at padding
};

class Tokenizer {
   public:
    // Refused for a file that is damaged, or of a kind this runtime doesn't read.
    explicit Tokenizer(const std::string& path);

    // Marked, cut and padded as the file says. `padded` false: as short as it is.
    Tokenized tokens(const std::u32string& text, bool padded = true) const;
    int64_t padding() const { return pad_id_; }

   private:
    friend class TokenizerFile;
    using Change = std::function<void(Characters&)>;
    using Split = std::function<void(const Characters&, std::vector<Characters>&)>;
    struct Added {
        std::u32string content;
        int64_t id;
        bool normalized, takes_left, takes_right;
    };
    using Piece = std::pair<Characters, int64_t>;  // id -1: a text that isn't a token yet

    void split_added(const Characters& text, bool normalized, std::vector<Piece>& pieces) const;
    void take(const Characters& text, std::vector<Token>& tokens) const;

    std::vector<Added> added_;
    std::vector<Change> changes_;
    std::vector<Split> splits_;
    std::unique_ptr<const TokenModel> model_;
    std::vector<int64_t> before_, after_;
    size_t length_ = 0, padded_ = 0, padded_to_ = 0;  // 0: not cut, not padded
    bool cut_left_ = false, pad_left_ = false;
    int64_t pad_id_ = 0;
};

}  // namespace accelaes
