// tokenizer.json: which of its parts this runtime knows, and what each of them does.
#include <array>
#include <fstream>
#include <nlohmann/json.hpp>

#include "failure.hpp"
#include "text/characters.hpp"
#include "text/models.hpp"
#include "text/normal_forms.hpp"
#include "text/tokenizer.hpp"
#include "whole_numbers.hpp"

namespace accelaes {
namespace {

using nlohmann::json;

constexpr std::streamoff largest = 256 << 20;
constexpr int64_t longest = 1 << 16;  // ids of a text
constexpr int deepest = 8;            // of sequences within sequences
// GPT-2's, which byte-level tokenizers divide texts by unless they have their own.
const char* const words_of_gpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

[[noreturn]] void unknown(const std::string& what) {
    refuse("This runtime doesn't read tokenizers with " + what + "; give their ids.");
}

std::string quoted(const std::string& literal) {
    std::string pattern;
    for (char c : literal) {
        bool plain = std::isalnum(static_cast<unsigned char>(c)) || (static_cast<unsigned char>(c) & 0x80) != 0;
        pattern += (plain ? "" : "\\") + std::string(1, c);
    }
    return pattern;
}

Pattern pattern_of(const json& given) {
    return Pattern(given.contains("Regex") ? given.at("Regex").get<std::string>()
                                           : quoted(given.at("String").get<std::string>()));
}

std::string from_base64(const std::string& text) {
    std::string bytes;
    uint32_t bits = 0;
    int count = 0;
    for (char c : text) {
        int value = c >= 'A' && c <= 'Z'   ? c - 'A'
                    : c >= 'a' && c <= 'z' ? c - 'a' + 26
                    : c >= '0' && c <= '9' ? c - '0' + 52
                    : c == '+'             ? 62
                    : c == '/'             ? 63
                                           : -1;
        if (c == '=') break;
        if (value < 0) refuse("The bundle's tokenizer has a table that is no base64; build it again.");
        bits = bits << 6 | static_cast<uint32_t>(value);
        count += 6;
        if (count >= 8) {
            count -= 8;
            bytes += static_cast<char>(bits >> count & 0xff);
        }
    }
    return bytes;
}

Characters part_of(const Characters& text, size_t first, size_t last) {
    auto at = [&](size_t k) { return text.begin() + static_cast<std::ptrdiff_t>(k); };
    return Characters(at(first), at(last));
}

// A text between the matches of a pattern, and the matches themselves: what is kept of the two.
void divide(const Characters& text, const Pattern& pattern, bool matches, bool rest, std::vector<Characters>& parts) {
    std::u32string written;
    for (const auto& character : text) written += character.c;
    size_t done = 0;
    pattern.each(written, [&](const Pattern::Groups& match) {
        auto [first, last] = match[0];
        if (rest && first > done) parts.push_back(part_of(text, done, first));
        if (matches && last > first) parts.push_back(part_of(text, first, last));
        done = last;
    });
    if (rest && done < text.size()) parts.push_back(part_of(text, done, text.size()));
}

// Bytes as characters that can be seen, as GPT-2 writes them.
std::array<char32_t, 256> visible_bytes() {
    std::array<char32_t, 256> made{};
    char32_t next = 256;
    for (size_t byte = 0; byte < made.size(); ++byte) {
        bool plain = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        made[byte] = plain ? static_cast<char32_t>(byte) : next++;
    }
    return made;
}

void write_bytes(Characters& text) {
    static const auto visible = visible_bytes();
    Characters made;
    for (const auto& character : text) {
        std::string utf8;
        append_utf8(utf8, character.c);
        for (char byte : utf8)
            made.push_back({visible[static_cast<unsigned char>(byte)], character.begin, character.end});
    }
    text = std::move(made);
}

// SentencePiece's words: blanks are written as a sign, and each word begins with it.
void mark_words(const Characters& text, char32_t sign, bool always, bool first, bool divided,
                std::vector<Characters>& parts) {
    Characters marked = text;
    for (auto& character : marked) {
        if (character.c == U' ') character.c = sign;
    }
    if (!marked.empty() && marked.front().c != sign && (always || (first && marked.front().begin == 0)))
        marked.insert(marked.begin(), {sign, marked.front().begin, marked.front().end});
    size_t begun = 0;
    for (size_t k = 1; divided && k < marked.size(); ++k) {
        if (marked[k].c != sign) continue;
        parts.push_back(part_of(marked, begun, k));
        begun = k;
    }
    if (!marked.empty()) parts.push_back(part_of(marked, begun, marked.size()));
}

}  // namespace

class TokenizerFile {
   public:
    TokenizerFile(const json& given, Tokenizer& to) : given_(given), to_(to) {}

    void read() {
        read_added();
        if (given_.contains("normalizer")) add_change(given_.at("normalizer"));
        if (given_.contains("pre_tokenizer")) add_split(given_.at("pre_tokenizer"));
        read_model(given_.at("model"));
        if (given_.contains("post_processor")) read_marks(given_.at("post_processor"));
        read_lengths();
    }

   private:
    static void check(int depth) {
        if (depth > deepest) unknown("sequences within sequences without end");
    }

    void read_added() {
        for (const auto& token : given_.at("added_tokens")) {
            std::string content = token.at("content");
            if (token.value("single_word", false)) unknown("tokens that are whole words alone (" + content + ")");
            if (content.empty()) continue;
            to_.added_.push_back({from_utf8(content, "A token of the bundle's tokenizer"), whole(token.at("id")),
                                  token.value("normalized", false), token.value("lstrip", false),
                                  token.value("rstrip", false)});
        }
    }

    void add_change(const json& one, int depth = 0) {
        if (one.is_null()) return;
        check(depth);
        std::string type = one.at("type");
        if (type == "Sequence") {
            for (const auto& part : one.at("normalizers")) add_change(part, depth + 1);
        } else if (type == "NFC" || type == "NFKC") {
            bool compatibility = type == "NFKC";
            to_.changes_.push_back([compatibility](Characters& text) { compose(text, compatibility); });
        } else if (type == "Lowercase") {
            to_.changes_.push_back(make_lower);
        } else if (type == "Replace") {
            auto content = from_utf8(one.at("content").get<std::string>(), "A text in the bundle's tokenizer");
            to_.changes_.push_back([pattern = pattern_of(one.at("pattern")), content](Characters& text) {
                replace(text, pattern, content);
            });
        } else if (type == "Precompiled") {
            auto table = std::make_shared<Replacements>(from_base64(one.at("precompiled_charsmap")));
            to_.changes_.push_back([table](Characters& text) { table->apply(text); });
        } else if (type == "Strip") {
            bool left = one.at("strip_left"), right = one.at("strip_right");
            to_.changes_.push_back([left, right](Characters& text) {
                size_t first = 0, last = text.size();
                while (left && first < last && is_space(text[first].c)) ++first;
                while (right && last > first && is_space(text[last - 1].c)) --last;
                text = part_of(text, first, last);
            });
        } else {
            unknown("the normalizer " + type);
        }
    }

    void add_split(const json& one, int depth = 0) {
        if (one.is_null()) return;
        check(depth);
        std::string type = one.at("type");
        auto add = [this](Tokenizer::Split split) { to_.splits_.push_back(std::move(split)); };
        if (type == "Sequence") {
            for (const auto& part : one.at("pretokenizers")) add_split(part, depth + 1);
        } else if (type == "Split") {
            std::string behavior = one.at("behavior");
            if (behavior != "Removed" && behavior != "Isolated") unknown("the splitting behaviour " + behavior);
            bool isolated = behavior == "Isolated", inverted = one.at("invert");
            add([=, pattern = pattern_of(one.at("pattern"))](const Characters& text, std::vector<Characters>& parts) {
                divide(text, pattern, isolated || inverted, isolated || !inverted, parts);
            });
        } else if (type == "WhitespaceSplit") {
            add([](const Characters& text, std::vector<Characters>& parts) {
                size_t begun = 0;
                for (size_t k = 0; k <= text.size(); ++k) {
                    if (k < text.size() && !is_space(text[k].c)) continue;
                    if (k > begun) parts.push_back(part_of(text, begun, k));
                    begun = k + 1;
                }
            });
        } else if (type == "Metaspace") {
            auto sign = from_utf8(one.at("replacement").get<std::string>(), "A sign of the bundle's tokenizer");
            std::string scheme = one.value("prepend_scheme", "always");
            bool always = scheme == "always", first = scheme == "first", divided = one.value("split", true);
            if (sign.size() != 1 || !(always || first || scheme == "never")) unknown("the word marks " + scheme);
            add([=](const Characters& text, std::vector<Characters>& parts) {
                mark_words(text, sign[0], always, first, divided, parts);
            });
        } else if (type == "ByteLevel") {
            if (one.value("add_prefix_space", true)) unknown("a blank before every text");
            bool divided = one.value("use_regex", true);
            add([divided, pattern = Pattern(words_of_gpt2)](const Characters& text, std::vector<Characters>& parts) {
                size_t begun = parts.size();
                if (divided) {
                    divide(text, pattern, true, true, parts);
                } else {
                    parts.push_back(text);
                }
                for (size_t k = begun; k < parts.size(); ++k) write_bytes(parts[k]);
            });
        } else {
            unknown("the pre-tokenizer " + type);
        }
    }

    void read_model(const json& model) {
        std::string type = model.at("type");
        if (model.value("byte_fallback", false)) unknown("bytes in place of unknown characters");
        if (type == "Unigram") {
            std::vector<std::pair<std::string, double>> pieces = model.at("vocab");
            if (model.at("unk_id").is_null()) unknown("a unigram model without an unknown token");
            int64_t id = whole(model.at("unk_id"));
            if (id < 0 || static_cast<size_t>(id) >= pieces.size())
                refuse("The bundle's tokenizer has an unknown token that it hasn't; build it again.");
            to_.model_ = std::make_unique<Unigram>(pieces, id);
        } else if (type == "BPE") {
            read_pairs(model);
        } else {
            unknown("the model " + type);
        }
    }

    void read_pairs(const json& model) {
        auto off = [&](const char* name) {
            auto found = model.find(name);
            return found == model.end() || found->is_null() || *found == false || *found == "";
        };
        for (const char* option : {"dropout", "fuse_unk", "ignore_merges", "continuing_subword_prefix"}) {
            if (!off(option)) unknown(std::string("the option ") + option);
        }
        std::unordered_map<std::string, int64_t> ids;
        for (const auto& [piece, id] : model.at("vocab").items()) ids[piece] = whole(id);
        std::vector<std::pair<std::string, std::string>> merges;
        for (const auto& merge : model.at("merges")) {
            if (merge.is_array()) {
                merges.emplace_back(merge.at(0), merge.at(1));
                continue;
            }
            std::string both = merge;
            auto blank = both.find(' ');
            if (blank == std::string::npos) refuse("The bundle's tokenizer has a merge of one; build it again.");
            merges.emplace_back(both.substr(0, blank), both.substr(blank + 1));
        }
        int64_t other = -1;
        if (!off("unk_token")) {
            auto found = ids.find(model.at("unk_token").get<std::string>());
            if (found != ids.end()) other = found->second;
        }
        std::string suffix = off("end_of_word_suffix") ? "" : model.at("end_of_word_suffix").get<std::string>();
        to_.model_ = std::make_unique<BytePairs>(std::move(ids), merges, suffix, other);
    }

    void read_marks(const json& one, int depth = 0) {
        if (one.is_null()) return;
        check(depth);
        std::string type = one.at("type");
        if (type == "Sequence") {
            for (const auto& part : one.at("processors")) read_marks(part, depth + 1);
        } else if (type == "RobertaProcessing" || type == "BertProcessing") {
            to_.before_ = {whole(one.at("cls").at(1))};
            to_.after_ = {whole(one.at("sep").at(1))};
        } else if (type == "TemplateProcessing") {
            auto* marks = &to_.before_;
            for (const auto& part : one.at("single")) {
                if (part.contains("Sequence")) {
                    marks = &to_.after_;
                    continue;
                }
                std::string name = part.at("SpecialToken").at("id");
                for (const auto& id : one.at("special_tokens").at(name).at("ids")) marks->push_back(whole(id));
            }
        } else if (type != "ByteLevel") {  // which is about characters of tokens alone
            unknown("the post-processor " + type);
        }
    }

    void read_lengths() {
        auto length = [](const json& given) {
            int64_t count = whole(given);
            if (count < 1 || count > longest)
                refuse("The bundle's tokenizer has a length that is none; build it again.");
            return static_cast<size_t>(count);
        };
        auto left = [](const json& given) { return given.at("direction") == "Left"; };
        if (auto cut = given_.find("truncation"); cut != given_.end() && !cut->is_null()) {
            to_.length_ = length(cut->at("max_length"));
            to_.cut_left_ = left(*cut);
        }
        auto fill = given_.find("padding");
        if (fill == given_.end() || fill->is_null()) return;
        if (fill->at("strategy").is_object()) to_.padded_ = length(fill->at("strategy").at("Fixed"));
        if (!fill->at("pad_to_multiple_of").is_null()) to_.padded_to_ = length(fill->at("pad_to_multiple_of"));
        to_.pad_left_ = left(*fill);
        to_.pad_id_ = whole(fill->at("pad_id"));
    }

    const json& given_;
    Tokenizer& to_;
};

Tokenizer::Tokenizer(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file || file.tellg() > largest) refuse(path + " can't be read as a tokenizer; build the bundle again.");
    file.seekg(0);
    try {
        TokenizerFile(json::parse(file), *this).read();
    } catch (const json::exception& error) {
        refuse(path + " is damaged (" + error.what() + "); build the bundle again.");
    }
}

}  // namespace accelaes
