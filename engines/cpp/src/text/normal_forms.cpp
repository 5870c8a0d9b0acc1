#include "text/normal_forms.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "failure.hpp"
#include "text/characters.hpp"

namespace accelaes {
namespace {

// Whether nothing before a character can combine with it. Hangul's vowels and finals can, and marks of every kind.
bool stands_alone(char32_t c) {
    if (c < 0x300) return true;
    const auto* about = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
    return about->combining_class == 0 && about->boundclass != UTF8PROC_BOUNDCLASS_V &&
           about->boundclass != UTF8PROC_BOUNDCLASS_T && about->boundclass != UTF8PROC_BOUNDCLASS_EXTEND &&
           about->boundclass != UTF8PROC_BOUNDCLASS_SPACINGMARK;
}

std::u32string composed(const std::string& utf8, bool compatibility) {
    int options = UTF8PROC_STABLE | UTF8PROC_COMPOSE | (compatibility ? UTF8PROC_COMPAT : 0);
    utf8proc_uint8_t* made = nullptr;
    auto count =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(utf8.data()), static_cast<utf8proc_ssize_t>(utf8.size()),
                     &made, static_cast<utf8proc_option_t>(options));
    if (count < 0) refuse(std::string("A text can't be composed: ") + utf8proc_errmsg(count) + ".");
    std::string text(reinterpret_cast<const char*>(made), static_cast<size_t>(count));
    std::free(made);
    return from_utf8(text, "A composed text");
}

}  // namespace

void compose(Characters& text, bool compatibility) {
    Characters made;
    for (size_t first = 0; first < text.size();) {
        size_t last = first + 1;
        while (last < text.size() && !stands_alone(text[last].c)) ++last;
        if (last == first + 1 && text[first].c < 0x80) {
            made.push_back(text[first]);
        } else {
            std::string utf8;
            for (size_t k = first; k < last; ++k) append_utf8(utf8, text[k].c);
            // A composed character counts as the first of its own; marks left over keep their places from the end.
            std::u32string now = composed(utf8, compatibility);
            for (size_t k = 0; k < now.size(); ++k) {
                size_t behind = now.size() - k;
                const auto& of = text[k > 0 && behind < last - first ? last - behind : first];
                made.push_back({now[k], of.begin, of.end});
            }
        }
        first = last;
    }
    text = std::move(made);
}

void make_lower(Characters& text) {
    Characters made;
    made.reserve(text.size());
    for (const auto& character : text) {
        if (character.c == 0x130) {
            made.push_back({U'i', character.begin, character.end});
            made.push_back({0x307, character.begin, character.end});
        } else {
            made.push_back({lower(character.c), character.begin, character.end});
        }
    }
    text = std::move(made);
}

void replace(Characters& text, const Pattern& pattern, const std::u32string& instead) {
    std::u32string written;
    for (const auto& character : text) written += character.c;
    Characters made;
    size_t done = 0;
    auto copy_to = [&](size_t end) {
        made.insert(made.end(), text.begin() + static_cast<std::ptrdiff_t>(done),
                    text.begin() + static_cast<std::ptrdiff_t>(end));
        done = end;
    };
    pattern.each(written, [&](const Pattern::Groups& match) {
        auto [begin, end] = match[0];
        copy_to(begin);
        int32_t from = begin < text.size() ? text[begin].begin : 0, to = end > begin ? text[end - 1].end : from;
        for (char32_t c : instead) made.push_back({c, from, to});
        done = end;
    });
    copy_to(text.size());
    text = std::move(made);
}

Replacements::Replacements(const std::string& table) {
    uint32_t bytes = 0;
    if (table.size() < sizeof bytes) refuse("The bundle's tokenizer has a table of no length; build it again.");
    std::memcpy(&bytes, table.data(), sizeof bytes);
    if (bytes % sizeof(uint32_t) != 0 || bytes == 0 || bytes > table.size() - sizeof bytes)
        refuse("The bundle's tokenizer has a table that is cut off; build it again.");
    trie_.resize(bytes / sizeof(uint32_t));
    std::memcpy(trie_.data(), table.data() + sizeof bytes, bytes);
    texts_ = table.substr(sizeof bytes + bytes);
}

const char* Replacements::find(const std::string& bytes) const {
    // A unit: label in the lowest byte, whether a text begins here in bit 8, and where its children lie in the rest.
    auto children = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
    size_t at = children(trie_[0]);
    for (char byte : bytes) {
        auto label = static_cast<unsigned char>(byte);
        if (label == 0) return nullptr;
        at ^= label;
        if (at >= trie_.size() || (trie_[at] & (1u << 31 | 0xffu)) != label) return nullptr;
        bool ends = (trie_[at] >> 8 & 1) != 0;
        at ^= children(trie_[at]);
        if (!ends) continue;
        if (at >= trie_.size()) return nullptr;
        size_t place = trie_[at] & ~(1u << 31);
        return place < texts_.size() ? texts_.c_str() + place : nullptr;
    }
    return nullptr;
}

void Replacements::apply(Characters& text) const {
    constexpr size_t most_bytes = 5;  // of what is looked up together
    Characters made;
    // Each counts as the character at its own place, and what is more than those as the last.
    auto put = [&](const char* instead, size_t first, size_t last) {
        for (char32_t c : from_utf8(instead, "A text in the table of the bundle's tokenizer")) {
            made.push_back({c, text[first].begin, text[first].end});
            first = std::min(first + 1, last - 1);
        }
    };
    for (size_t first = 0; first < text.size();) {
        size_t last = first + 1;
        utf8proc_int32_t state = 0;
        auto point = [&](size_t k) { return static_cast<utf8proc_int32_t>(text[k].c); };
        while (last < text.size() && !utf8proc_grapheme_break_stateful(point(last - 1), point(last), &state)) ++last;
        std::string together;
        for (size_t k = first; k < last; ++k) append_utf8(together, text[k].c);
        const char* instead = together.size() <= most_bytes ? find(together) : nullptr;
        if (instead != nullptr) {
            put(instead, first, last);
        } else {
            for (size_t k = first; k < last; ++k) {
                std::string alone;
                append_utf8(alone, text[k].c);
                const char* found = find(alone);
                if (found == nullptr) {
                    made.push_back(text[k]);
                } else {
                    put(found, k, k + 1);
                }
            }
        }
        first = last;
    }
    text = std::move(made);
}

}  // namespace accelaes
