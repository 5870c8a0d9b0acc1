// A prompt: its words, what they weigh in every scope, and its notation. A zero byte ends an anchor.
#include "fuzz/input.hpp"
#include "text/characters.hpp"
#include "words/lexical.hpp"
#include "words/notation.hpp"
#include "words/words.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    auto [anchor, text] = fuzz::halves(data, size);
    fuzz::tried([&, &one = anchor, &given = text] {
        std::vector<std::u32string> anchors = {accelaes::from_utf8(one, "An anchor"), U"close up"};
        std::u32string prompt = accelaes::from_utf8(given, "The prompt");
        if (accelaes::without_notation(prompt).size() != prompt.size()) std::abort();
        auto scorer = [&](const std::vector<accelaes::Word>& words) {
            auto found = accelaes::anchor_matches(words, anchors);
            return std::vector<double>(found.begin(), found.end());
        };
        for (const char* scope : {"word", "phrase", "others", "all"}) {
            for (const auto& [word, weight] : accelaes::weigh_words(prompt, scorer, {0.6, scope}, {})) {
                if (word.end > prompt.size() || word.start >= word.end || !(weight >= 0 && weight <= 1)) std::abort();
            }
        }
        accelaes::lowered(prompt);
    });
    return 0;
}
