#include "text/characters.hpp"

#include <utf8proc.h>

#include <array>

#include "failure.hpp"

namespace accelaes {
namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool between(utf8proc_category_t kind, utf8proc_category_t first, utf8proc_category_t last) {
    return kind >= first && kind <= last;
}

// What Unicode calls a digit outside the category of decimal digits.
struct Span {
    char32_t first, last;
};
constexpr std::array<Span, 20> other_digits = {
    {{0xb2, 0xb3},     {0xb9, 0xb9},       {0x1369, 0x1371},   {0x19da, 0x19da},   {0x2070, 0x2070},
     {0x2074, 0x2079}, {0x2080, 0x2089},   {0x2460, 0x2468},   {0x2474, 0x247c},   {0x2488, 0x2490},
     {0x24ea, 0x24ea}, {0x24f5, 0x24fd},   {0x24ff, 0x24ff},   {0x2776, 0x277e},   {0x2780, 0x2788},
     {0x278a, 0x2792}, {0x10a40, 0x10a43}, {0x10e60, 0x10e68}, {0x11052, 0x1105a}, {0x1f100, 0x1f10a}}};

// Whether a letter has cases, and whether a character may stand between one and a sigma that ends a word.
bool is_cased(char32_t c) { return between(category(c), UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LT); }

bool is_passed_over(char32_t c) {
    switch (category(c)) {
        case UTF8PROC_CATEGORY_MN:
        case UTF8PROC_CATEGORY_ME:
        case UTF8PROC_CATEGORY_CF:
        case UTF8PROC_CATEGORY_LM:
        case UTF8PROC_CATEGORY_SK: return true;
        default: break;
    }
    for (char32_t other : {U'\'', U'.', U':', U'\u00b7', U'\u0387', U'\u055f', U'\u05f4', U'\u2018', U'\u2019',
                           U'\u2024', U'\u2027', U'\ufe13', U'\ufe52', U'\ufe55', U'\uff07', U'\uff0e', U'\uff1a'}) {
        if (c == other) return true;
    }
    return false;
}

bool ends_word(const std::u32string& text, size_t at) {
    size_t before = at;
    while (before > 0 && is_passed_over(text[before - 1])) --before;
    if (before == 0 || !is_cased(text[before - 1])) return false;
    size_t after = at + 1;
    while (after < text.size() && is_passed_over(text[after])) ++after;
    return after == text.size() || !is_cased(text[after]);
}

}  // namespace

std::u32string from_utf8(const std::string& utf8, const char* what) {
    std::u32string text;
    const auto* from = reinterpret_cast<const utf8proc_uint8_t*>(utf8.data());
    for (size_t at = 0; at < utf8.size();) {
        utf8proc_int32_t c;
        auto read = utf8proc_iterate(from + at, static_cast<utf8proc_ssize_t>(utf8.size() - at), &c);
        if (read <= 0) refuse(std::string(what) + " is no UTF-8 at byte " + std::to_string(at) + "; encode it so.");
        text += static_cast<char32_t>(c);
        at += static_cast<size_t>(read);
    }
    return text;
}

std::string readable(const std::string& bytes) {
    std::string made;
    const auto* from = reinterpret_cast<const utf8proc_uint8_t*>(bytes.data());
    for (size_t at = 0; at < bytes.size();) {
        utf8proc_int32_t c;
        auto read = utf8proc_iterate(from + at, static_cast<utf8proc_ssize_t>(bytes.size() - at), &c);
        bool shown = read > 0 && c >= 0x20 && !(c >= 0x7f && c < 0xa0);
        made += shown ? bytes.substr(at, static_cast<size_t>(read)) : "?";
        at += read > 0 ? static_cast<size_t>(read) : 1;
    }
    return made;
}

void append_utf8(std::string& to, char32_t c) {
    utf8proc_uint8_t bytes[4];
    auto count = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
    to.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(count));
}

std::string to_utf8(const std::u32string& text) {
    std::string utf8;
    for (char32_t c : text) append_utf8(utf8, c);
    return utf8;
}

bool is_letter(char32_t c) { return between(category(c), UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LO); }
bool is_number(char32_t c) { return between(category(c), UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO); }
bool is_mark(char32_t c) { return between(category(c), UTF8PROC_CATEGORY_MN, UTF8PROC_CATEGORY_ME); }

bool is_space(char32_t c) {
    return (c >= 9 && c <= 13) || c == 0x85 || between(category(c), UTF8PROC_CATEGORY_ZS, UTF8PROC_CATEGORY_ZP);
}

bool is_blank(char32_t c) { return is_space(c) || (c >= 0x1c && c <= 0x1f); }

bool is_digit(char32_t c) {
    if (category(c) == UTF8PROC_CATEGORY_ND) return true;
    for (const auto& span : other_digits) {
        if (c >= span.first && c <= span.last) return true;
    }
    return false;
}

char32_t lower(char32_t c) { return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))); }

std::u32string lowered(const std::u32string& text) {
    std::u32string made;
    for (size_t at = 0; at < text.size(); ++at) {
        if (text[at] == 0x130) {
            made += U"i\u0307";
        } else if (text[at] == 0x3a3) {
            made += ends_word(text, at) ? char32_t{0x3c2} : char32_t{0x3c3};
        } else {
            made += lower(text[at]);
        }
    }
    return made;
}

std::u32string folded(const std::u32string& text) {
    std::u32string made;
    for (char32_t c : text) {
        utf8proc_int32_t parts[8];
        int state = 0;
        auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 8, UTF8PROC_CASEFOLD, &state);
        if (count < 1 || count > 8) {
            made += c;
            continue;
        }
        for (utf8proc_ssize_t k = 0; k < count; ++k) made += static_cast<char32_t>(parts[k]);
    }
    return made;
}

std::u32string stripped(const std::u32string& text) {
    size_t first = 0, last = text.size();
    while (first < last && is_blank(text[first])) ++first;
    while (last > first && is_blank(text[last - 1])) --last;
    return text.substr(first, last - first);
}

}  // namespace accelaes
