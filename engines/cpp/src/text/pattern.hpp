// Regular expressions over code points: those of tokenizer files, and those of prompts' notation.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace accelaes {

class Pattern {
   public:
    // In PCRE's notation, where \w, \d and \p{L} mean Unicode's; refused where it is none.
    explicit Pattern(const std::string& utf8, bool any_case = false);

    using Groups = std::vector<std::pair<size_t, size_t>>;  // begin and end; the whole match first
    // Every match from left to right, none within another. A group that took no part is empty.
    void each(const std::u32string& text, const std::function<void(const Groups&)>& found) const;

   private:
    std::shared_ptr<const void> code_;
};

}  // namespace accelaes
