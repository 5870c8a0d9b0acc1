#include "text/pattern.hpp"

#define PCRE2_CODE_UNIT_WIDTH 32
#include <pcre2.h>

#include "failure.hpp"
#include "text/characters.hpp"

namespace accelaes {
namespace {

constexpr uint32_t most_steps = 10'000'000;  // a pattern of a damaged file mustn't search for ever

PCRE2_SPTR units(const std::u32string& text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

Pattern::Pattern(const std::string& utf8, bool any_case) {
    std::u32string pattern = from_utf8(utf8, "A pattern");
    int error = 0;
    PCRE2_SIZE at = 0;
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | (any_case ? PCRE2_CASELESS : 0);
    auto* code = pcre2_compile(units(pattern), pattern.size(), options, &error, &at, nullptr);
    if (code == nullptr)
        refuse("The pattern " + utf8 + " is none this runtime can read, at character " + std::to_string(at) + ".");
    code_ = std::shared_ptr<const void>(code, [code](const void*) { pcre2_code_free(code); });
}

void Pattern::each(const std::u32string& text, const std::function<void(const Groups&)>& found) const {
    const auto* code = static_cast<const pcre2_code*>(code_.get());
    std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> data(
        pcre2_match_data_create_from_pattern(code, nullptr), pcre2_match_data_free);
    std::unique_ptr<pcre2_match_context, void (*)(pcre2_match_context*)> limits(pcre2_match_context_create(nullptr),
                                                                                pcre2_match_context_free);
    if (data == nullptr || limits == nullptr) throw std::bad_alloc();
    pcre2_set_match_limit(limits.get(), most_steps);
    size_t from = 0;
    while (from <= text.size()) {
        int groups = pcre2_match(code, units(text), text.size(), from, PCRE2_NO_UTF_CHECK, data.get(), limits.get());
        if (groups == PCRE2_ERROR_NOMATCH) return;
        if (groups < 0) refuse("A pattern of the bundle's tokenizer takes too long over this text; give it as ids.");
        const PCRE2_SIZE* places = pcre2_get_ovector_pointer(data.get());
        Groups match(pcre2_get_ovector_count(data.get()));
        for (size_t k = 0; k < match.size(); ++k) {
            bool took_part = k < static_cast<size_t>(groups) && places[2 * k] != PCRE2_UNSET;
            if (took_part) match[k] = {places[2 * k], places[2 * k + 1]};
        }
        if (match[0].second < match[0].first) refuse("A pattern of the bundle's tokenizer ends before it begins.");
        found(match);
        from = match[0].second > match[0].first ? match[0].second : match[0].second + 1;
    }
}

}  // namespace accelaes
