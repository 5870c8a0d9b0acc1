// A tokenizer's file, a zero byte, and a text: read or refused.
#include "text/tokenizer.hpp"
#include "fuzz/input.hpp"
#include "text/characters.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    auto [file, text] = fuzz::halves(data, size);
    fuzz::tried([&, &written = file, &given = text] {
        accelaes::Tokenizer tokenizer(fuzz::file(written, "tokenizer.json"));
        tokenizer.tokens(accelaes::from_utf8(given, "The text"));
        tokenizer.tokens(accelaes::from_utf8(given, "The text"), false);
    });
    return 0;
}
