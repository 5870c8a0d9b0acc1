// The notation that people paste into prompts from other programs, which says nothing of what is to be seen.
#pragma once

#include <string>

namespace accelaes {

// `prompt` with blanks in place of the notation of prompt weights, so that every word stays at its place.
std::u32string without_notation(std::u32string prompt);

}  // namespace accelaes
