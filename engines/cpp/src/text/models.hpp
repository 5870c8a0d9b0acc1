// The models of tokenizers.
#pragma once

#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/tokenizer.hpp"

namespace accelaes {

// Byte-pair encoding: of all neighbours the pair of the lowest rank is joined, the leftmost first, until none is left.
class BytePairs : public TokenModel {
   public:
    // `merges` in order of rank. `suffix`: behind a piece's last character. `unknown` -1: what isn't known is left out.
    BytePairs(std::unordered_map<std::string, int64_t> ids,
              const std::vector<std::pair<std::string, std::string>>& merges, std::string suffix, int64_t unknown);

    void take(const Characters& piece, std::vector<Token>& tokens) const override;

   private:
    struct Join {
        int64_t rank, id;
    };
    struct PairHash {
        size_t operator()(const std::pair<int64_t, int64_t>& pair) const {
            return std::hash<uint64_t>()(static_cast<uint64_t>(pair.first) * 0x9e3779b97f4a7c15u ^
                                         static_cast<uint64_t>(pair.second));
        }
    };

    std::unordered_map<std::string, int64_t> ids_;
    std::unordered_map<std::pair<int64_t, int64_t>, Join, PairHash> joins_;
    std::string suffix_;
    int64_t unknown_;
};

// The most probable way to write a text in known pieces (Kudo 2018, by Viterbi's algorithm).
class Unigram : public TokenModel {
   public:
    Unigram(const std::vector<std::pair<std::string, double>>& pieces, int64_t unknown);

    void take(const Characters& piece, std::vector<Token>& tokens) const override;

   private:
    struct Known {
        int64_t id;
        double score;
    };
    std::unordered_map<std::u32string, Known> pieces_;
    size_t longest_ = 0;
    double unknown_score_ = 0;
    int64_t unknown_;
};

}  // namespace accelaes
