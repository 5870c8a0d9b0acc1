#include "text/models.hpp"

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>

#include "failure.hpp"
#include "text/characters.hpp"

namespace accelaes {

BytePairs::BytePairs(std::unordered_map<std::string, int64_t> ids,
                     const std::vector<std::pair<std::string, std::string>>& merges, std::string suffix,
                     int64_t unknown)
    : ids_(std::move(ids)), suffix_(std::move(suffix)), unknown_(unknown) {
    int64_t rank = 0;
    for (const auto& [left, right] : merges) {
        auto first = ids_.find(left), second = ids_.find(right), joined = ids_.find(left + right);
        if (first == ids_.end() || second == ids_.end() || joined == ids_.end())
            refuse("The bundle's tokenizer joins " + left + " and " + right + ", which it hasn't; build it again.");
        joins_[{first->second, second->second}] = {rank++, joined->second};
    }
}

void BytePairs::take(const Characters& piece, std::vector<Token>& tokens) const {
    struct Symbol {
        Token token;
        int32_t before, after;  // -1: none
        bool gone;
    };
    std::vector<Symbol> symbols;
    for (size_t k = 0; k < piece.size(); ++k) {
        std::string written;
        append_utf8(written, piece[k].c);
        if (k + 1 == piece.size()) written += suffix_;
        auto found = ids_.find(written);
        int64_t id = found == ids_.end() ? unknown_ : found->second;
        if (id < 0) continue;
        auto at = static_cast<int32_t>(symbols.size());
        symbols.push_back({{id, piece[k].begin, piece[k].end}, at - 1, at + 1, false});
    }
    if (symbols.empty()) return;
    symbols.back().after = -1;
    // Rank and place of a pair's left half, the smallest first; and what the pair was, as it may be gone by then.
    using Wanted = std::tuple<int64_t, int32_t, int64_t>;
    std::priority_queue<Wanted, std::vector<Wanted>, std::greater<Wanted>> queue;
    auto consider = [&](int32_t left) {
        if (left < 0) return;
        const Symbol& symbol = symbols[static_cast<size_t>(left)];
        if (symbol.after < 0) return;
        auto join = joins_.find({symbol.token.id, symbols[static_cast<size_t>(symbol.after)].token.id});
        if (join != joins_.end()) queue.emplace(join->second.rank, left, join->second.id);
    };
    for (size_t k = 0; k + 1 < symbols.size(); ++k) consider(static_cast<int32_t>(k));
    while (!queue.empty()) {
        auto [rank, at, id] = queue.top();
        queue.pop();
        Symbol& left = symbols[static_cast<size_t>(at)];
        if (left.gone || left.after < 0) continue;
        Symbol& right = symbols[static_cast<size_t>(left.after)];
        auto join = joins_.find({left.token.id, right.token.id});
        if (join == joins_.end() || join->second.rank != rank || join->second.id != id) continue;
        left.token = {id, left.token.begin, right.token.end};
        left.after = right.after;
        right.gone = true;
        if (left.after >= 0) symbols[static_cast<size_t>(left.after)].before = at;
        consider(left.before);
        consider(at);
    }
    for (const auto& symbol : symbols) {
        if (!symbol.gone) tokens.push_back(symbol.token);
    }
}

Unigram::Unigram(const std::vector<std::pair<std::string, double>>& pieces, int64_t unknown) : unknown_(unknown) {
    constexpr double penalty = 10;  // of a character that is in no piece, below the least probable one
    double least = std::numeric_limits<double>::infinity();
    for (size_t id = 0; id < pieces.size(); ++id) {
        std::u32string piece = from_utf8(pieces[id].first, "A piece of the bundle's tokenizer");
        pieces_[piece] = {static_cast<int64_t>(id), pieces[id].second};
        longest_ = std::max(longest_, piece.size());
        least = std::min(least, pieces[id].second);
    }
    unknown_score_ = least - penalty;
}

void Unigram::take(const Characters& piece, std::vector<Token>& tokens) const {
    struct Best {
        double score = 0;
        size_t from = 0;
        int64_t id = -1;  // -1: nothing ends here
    };
    std::u32string text;
    for (const auto& character : piece) text += character.c;
    std::vector<Best> best(text.size() + 1);
    auto offer = [&](size_t from, size_t to, int64_t id, double score) {
        if (best[to].id < 0 || score > best[to].score) best[to] = {score, from, id};
    };
    for (size_t from = 0; from < text.size(); ++from) {
        double so_far = best[from].score;
        bool alone = false;
        for (size_t count = 1; count <= longest_ && from + count <= text.size(); ++count) {
            auto found = pieces_.find(text.substr(from, count));
            if (found == pieces_.end()) continue;
            alone = alone || count == 1;
            offer(from, from + count, found->second.id, so_far + found->second.score);
        }
        if (!alone) offer(from, from + 1, unknown_, so_far + unknown_score_);
    }
    size_t first = tokens.size();
    for (size_t to = text.size(); to > 0;) {
        size_t from = best[to].from;
        // Unknown characters beside each other are one token; written together they may even be a piece.
        while (best[to].id == unknown_ && from > 0 && best[from].id == unknown_) from = best[from].from;
        auto known = pieces_.find(text.substr(from, to - from));
        int64_t id = known == pieces_.end() ? unknown_ : known->second.id;
        tokens.push_back({id, piece[from].begin, piece[to - 1].end});
        to = from;
    }
    std::reverse(tokens.begin() + static_cast<std::ptrdiff_t>(first), tokens.end());
}

}  // namespace accelaes
