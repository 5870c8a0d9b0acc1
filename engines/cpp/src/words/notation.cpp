#include "words/notation.hpp"

#include <string>
#include <vector>

#include "text/pattern.hpp"

namespace accelaes {
namespace {

// Classes are spelt out: what \w and \s mean differs between releases of PCRE, and from Python.
#define NUMBER R"([+-]?(?:\p{Nd}+\.?\p{Nd}*|\.\p{Nd}+))"
#define SPACE R"(\s\x1c-\x1f)"
#define END "(?=[" SPACE R"(,;)\]}|]|\.(?!\p{Nd})|$))"
#define WORD R"([\p{L}\p{N}_])"

struct Notation {
    Pattern pattern;
    bool comma;  // its match ends a phrase: a comma stands for it
};

// Each is blanked where the pattern's groups are, in this order again and again, so that what is nested is found from
// the inside out. accelaes_export/policies/notation.py says what each of them is.
const std::vector<Pattern>& notation() {
    static const std::vector<Pattern> patterns = {
        Pattern("(<(?:lora|lyco|hypernet|embedding):[^<>]*>)", true),
        Pattern(R"((?<=[\p{L}\p{Nl}\p{No}])(:{1,2})" NUMBER ")" END),
        Pattern(R"((\()[^()]*?(:[)" SPACE "]*" NUMBER "[" SPACE R"(]*\)))"),
        Pattern(R"((\[)[^\[\]]*?(:[)" SPACE "]*" NUMBER "[" SPACE R"(]*\]))"),
        Pattern(R"((\()[^()]*?(\)(?:)" NUMBER R"(|\++|-+)))"),
        Pattern("(?<=" WORD R"()(\++|--+)(?=[)" SPACE ",.;)]|$)"),
        Pattern(R"((\\?\()[^()]*?(\\?\)))"),
        Pattern(R"((\\?\[)[^\[\]]*?(\\?\]))"),
        Pattern(R"((\\?\{)[^{}]*?(\\?\}))"),
        Pattern("(?<!" WORD R"()(_{1,3})(?=[\p{L}\p{N}]))"),
        Pattern(R"((?<=[\p{L}\p{N}])(_{1,3})(?!)" WORD ")"),
        Pattern("(?<![^" SPACE R"(])(\*{1,3})[^)" SPACE "*](?:[^*]*[^" SPACE R"(*])?(\*{1,3})(?!)" WORD ")"),
    };
    return patterns;
}

constexpr int deepest = 16;

}  // namespace

std::u32string without_notation(std::u32string prompt) {
    static const Pattern paused("(?<!" WORD ")BREAK(?!" WORD ")");
    paused.each(std::u32string(prompt), [&](const Pattern::Groups& match) {
        prompt.replace(match[0].first, match[0].second - match[0].first, U",    ");
    });
    for (int depth = 0; depth < deepest; ++depth) {
        std::u32string before = prompt;
        for (const auto& pattern : notation()) {
            pattern.each(std::u32string(prompt), [&](const Pattern::Groups& match) {
                for (size_t k = 1; k < match.size(); ++k) {
                    for (size_t at = match[k].first; at < match[k].second; ++at) prompt[at] = U' ';
                }
            });
        }
        if (prompt == before) break;
    }
    return prompt;
}

}  // namespace accelaes
