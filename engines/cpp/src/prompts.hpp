// From prompts to ids and to the weights of text positions.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "components.hpp"
#include "text/tokenizer.hpp"
#include "words/words.hpp"

namespace accelaes {

// Of one image: the text that each of the pipeline's tokenizers is given, as they are: already cleaned.
using PromptRow = std::map<std::string, std::u32string>;

struct WeighedPrompt {
    std::vector<float> weights;      // [M]
    std::vector<WeighedWord> words;  // of the first tokenizer's prompt
};

// What reading prompts takes, made when a bundle's first prompt is read: its tokenizers, and the anchors as its CLIP
// encoder sees them.
class PromptReader {
   public:
    explicit PromptReader(const Bundle& bundle);

    // Of a prompt and what the caller gives of its second and third form (NULL: the first's).
    PromptRow row(const char* first, const char* second, const char* third, const char* what) const;
    // The ids of all rows, by tokenizer.
    std::map<std::string, Text> ids(const std::vector<PromptRow>& rows) const;
    // Alpha of each of `text_tokens` positions. Words no encoder reads weigh nothing, and where no word weighs anything
    // all of the prompt weighs the same; refused where all positions would.
    WeighedPrompt weigh(const PromptRow& row, int64_t text_tokens, const WordScoring& scoring) const;

   private:
    const Tokenizer& tokenizer(const std::string& name) const;
    std::vector<double> score(const std::vector<Word>& words) const;
    // Unit vectors [texts, width]: the mean of a text's own tokens in the CLIP encoder's last hidden state.
    std::vector<std::vector<double>> embed(const std::vector<std::u32string>& texts) const;

    const Bundle& bundle_;
    std::map<std::string, std::unique_ptr<const Tokenizer>> tokenizers_;
    std::vector<std::u32string> anchors_, long_anchors_;
    const Encoder* clip_ = nullptr;  // null: words are scored lexically
    std::vector<std::vector<double>> anchors_seen_;
};

}  // namespace accelaes
