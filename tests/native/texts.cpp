// Reads texts that end with a zero byte from standard input and writes one line of each:
//     texts tokens TOKENIZER    id:begin:end of every token, with what marks and fills it
//     texts notation            the text without notation, its code points in hexadecimal
//     texts words ANCHOR...     start:end:stop:clause:phrase:anchored of every word
//     texts weigh SCOPE THRESHOLD ANCHOR...   start:end:weight of every content word, scored lexically
//     texts lower               in small letters, without blanks at the ends, its code points in hexadecimal
// and of every code point, four bytes each, whose kinds are its bits:
//     texts kinds
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "failure.hpp"
#include "text/characters.hpp"
#include "text/tokenizer.hpp"
#include "words/lexical.hpp"
#include "words/notation.hpp"
#include "words/words.hpp"

using namespace accelaes;

namespace {

std::vector<std::u32string> texts_of(char** first, char** last) {
    std::vector<std::u32string> texts;
    for (; first != last; ++first) texts.push_back(from_utf8(*first, "An argument"));
    return texts;
}

void write_points(const std::u32string& text) {
    for (char32_t c : text) std::printf("%x ", static_cast<unsigned>(c));
}

void each_text(const std::function<void(const std::u32string&)>& work) {
    std::string text;
    while (std::getline(std::cin, text, '\0')) {
        work(from_utf8(text, "A text"));
        std::puts("");
    }
}

int run(int count, char** words) {
    std::string kind = words[1];
    if (kind == "tokens") {
        Tokenizer tokenizer(words[2]);
        each_text([&](const std::u32string& text) {
            for (const auto& token : tokenizer.tokens(text).tokens)
                std::printf("%lld:%d:%d ", static_cast<long long>(token.id), token.begin, token.end);
        });
    } else if (kind == "notation") {
        each_text([](const std::u32string& text) { write_points(without_notation(text)); });
    } else if (kind == "lower") {
        each_text([](const std::u32string& text) { write_points(stripped(lowered(text))); });
    } else if (kind == "words") {
        auto anchors = texts_of(words + 2, words + count);
        each_text([&](const std::u32string& text) {
            auto found = split_words(text);
            auto anchored = anchor_matches(found, anchors);
            for (size_t k = 0; k < found.size(); ++k)
                std::printf("%zu:%zu:%d:%d:%d:%d ", found[k].start, found[k].end, found[k].stop, found[k].clause,
                            found[k].phrase, int(anchored[k]));
        });
    } else if (kind == "weigh") {
        auto anchors = texts_of(words + 4, words + count);
        WordScoring scoring{std::strtod(words[3], nullptr), words[2]};
        auto scorer = [&](const std::vector<Word>& found) {
            auto anchored = anchor_matches(found, anchors);
            return std::vector<double>(anchored.begin(), anchored.end());
        };
        each_text([&](const std::u32string& text) {
            for (const auto& [word, weight] : weigh_words(text, scorer, scoring, {}))
                std::printf("%zu:%zu:%.17g ", word.start, word.end, weight);
        });
    } else {
        for (char32_t c = 0; c < 0x110000; ++c) {
            unsigned bits = unsigned(is_letter(c)) | unsigned(is_number(c)) << 1 | unsigned(is_mark(c)) << 2 |
                            unsigned(is_blank(c)) << 3 | unsigned(is_digit(c)) << 4;
            std::fwrite(&bits, sizeof bits, 1, stdout);
        }
    }
    return 0;
}

}  // namespace

int main(int count, char** words) {
    try {
        return run(count, words);
    } catch (const Failure& failure) {
        std::fprintf(stderr, "%s\n", failure.sentence.c_str());
        return failure.code;
    }
}
