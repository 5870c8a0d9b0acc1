// Characters of texts, and what kind each is. Texts come and go as UTF-8, and are worked on as code points.
#pragma once

#include <string>

namespace accelaes {

// Refused where it is no UTF-8; `what` names it.
std::u32string from_utf8(const std::string& utf8, const char* what);
std::string to_utf8(const std::u32string& text);
// Bytes of anybody's as UTF-8 for a message: a question mark for every byte that is none, or that controls a terminal.
std::string readable(const std::string& bytes);
void append_utf8(std::string& to, char32_t c);

bool is_letter(char32_t c);  // L*
bool is_number(char32_t c);  // N*
bool is_mark(char32_t c);    // M*
bool is_space(char32_t c);   // Unicode's White_Space
bool is_blank(char32_t c);   // what Python calls a space: four control characters more
bool is_digit(char32_t c);   // what Python calls a digit: of any script, raised and circled ones too

char32_t lower(char32_t c);
// As Python's str.lower does, which sees where a sigma ends a word.
std::u32string lowered(const std::u32string& text);
// Without case: as Python's str.casefold.
std::u32string folded(const std::u32string& text);
std::u32string stripped(const std::u32string& text);  // of blanks at both ends

}  // namespace accelaes
