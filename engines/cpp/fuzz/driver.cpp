// Runs a fuzz target where the compiler has no libFuzzer: TARGET SECONDS SEED FILE...
//
// Inputs are the files, changed by chance: bytes and stretches of them replaced, left out, doubled, taken from another.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

const std::vector<std::string> pieces = {"0",
                                         "-1",
                                         "1e999",
                                         "9223372036854775807",
                                         "null",
                                         "true",
                                         "[]",
                                         "{}",
                                         "\"\"",
                                         std::string(1, '\0'),
                                         "\xff",
                                         "\\u0000",
                                         "(",
                                         ")",
                                         "*",
                                         "\xcc\x81",
                                         "\xe2\x96\x81",
                                         "\xf0\x9f\x98\x80",
                                         "<|endoftext|>",
                                         "__",
                                         "::1.2"};

std::string changed(std::string bytes, const std::vector<std::string>& files, std::mt19937_64& chance) {
    auto below = [&](size_t count) { return static_cast<size_t>(chance() % (count == 0 ? 1 : count)); };
    for (size_t left = 1 + below(6); left > 0; --left) {
        size_t at = below(bytes.size() + 1), count = std::min(below(below(2) ? 8 : 400), bytes.size() - at);
        switch (below(6)) {
            case 0: bytes.erase(at, count); break;
            case 1: bytes.replace(at, std::min(count, size_t{1}), pieces[below(pieces.size())]); break;
            case 2: bytes.insert(at, bytes.substr(at, count)); break;
            case 3: bytes.insert(at, pieces[below(pieces.size())]); break;
            case 4: {
                const std::string& other = files[below(files.size())];
                bytes.replace(at, count, other.substr(below(other.size()), below(400)));
                break;
            }
            default:
                if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        }
    }
    return bytes;
}

}  // namespace

int main(int count, char** words) {
    if (count < 4) {
        std::fprintf(stderr, "error: give %s SECONDS SEED FILE...\n", words[0]);
        return 2;
    }
    std::vector<std::string> files;
    for (int k = 3; k < count; ++k) {
        std::ifstream file(words[k], std::ios::binary);
        files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    std::mt19937_64 chance(std::strtoull(words[2], nullptr, 10));
    auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::strtod(words[1], nullptr));
    size_t runs = 0;
    for (; std::chrono::steady_clock::now() < end; ++runs) {
        const std::string& whole = files[chance() % files.size()];
        std::string bytes = runs < files.size() ? files[runs] : changed(whole, files, chance);
        LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    }
    std::printf("%zu\n", runs);
    return 0;
}
