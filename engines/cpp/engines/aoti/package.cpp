#include "aoti/package.hpp"

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "format.hpp"

namespace aoti {
namespace {

using accelaes::Refused;

[[noreturn]] void damaged(const char* what) {
    throw Refused{ACCELAES_INPUT,
                  std::string("It is no package of AOTInductor's (") + what + "); build the bundle again"};
}

// A little-endian number of 2, 4 or 8 bytes; refused beyond the end.
uint64_t number(const std::vector<char>& bytes, size_t at, size_t width) {
    if (at > bytes.size() || width > bytes.size() - at) damaged("it is cut off");
    uint64_t value = 0;
    for (size_t k = width; k-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[at + k]);
    return value;
}

struct Stretch {
    size_t begin, size;
};

// The first entry whose name ends so, by the zip's directory at its end (APPNOTE 4.3.6 to 4.3.16, 4.5.3 for large
// ones).
Stretch entry(const std::vector<char>& bytes, const std::string& ending) {
    constexpr size_t tail = 22, large_locator = 20;
    constexpr uint64_t unsaid = 0xffffffff;
    if (bytes.size() < tail) damaged("it is too short");
    size_t end = bytes.size() - tail;
    while (number(bytes, end, 4) != 0x06054b50) {
        if (end == 0) damaged("it has no directory");
        --end;
    }
    uint64_t count = number(bytes, end + 10, 2), at = number(bytes, end + 16, 4);
    if (end >= large_locator && number(bytes, end - large_locator, 4) == 0x07064b50) {
        size_t large = number(bytes, end - large_locator + 8, 8);
        count = number(bytes, large + 32, 8), at = number(bytes, large + 48, 8);
    }
    for (; count > 0; --count) {
        if (number(bytes, at, 4) != 0x02014b50) damaged("its directory is none");
        uint64_t method = number(bytes, at + 10, 2), packed = number(bytes, at + 20, 4),
                 size = number(bytes, at + 24, 4);
        uint64_t name = number(bytes, at + 28, 2), extra = number(bytes, at + 30, 2), note = number(bytes, at + 32, 2);
        uint64_t local = number(bytes, at + 42, 4), fields = at + 46 + name;
        number(bytes, fields + extra, 0);
        std::string called(bytes.data() + at + 46, name);
        for (size_t field = fields; field + 4 <= fields + extra; field += 4 + number(bytes, field + 2, 2)) {
            if (number(bytes, field, 2) != 1) continue;
            size_t value = field + 4;  // what had no room above, in this order
            for (uint64_t* own : {&size, &packed, &local}) {
                if (*own != unsaid) continue;
                *own = number(bytes, value, 8);
                value += 8;
            }
        }
        bool wanted =
            called.size() >= ending.size() && called.compare(called.size() - ending.size(), ending.size(), ending) == 0;
        if (wanted) {
            if (method != 0) damaged("its library is compressed");
            size_t begin = local + 30 + number(bytes, local + 26, 2) + number(bytes, local + 28, 2);
            if (begin > bytes.size() || size > bytes.size() - begin) damaged("its library is cut off");
            return {begin, size};
        }
        at += 46 + name + extra + note;
    }
    damaged("it has no library");
}

}  // namespace

std::string extracted_library(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    Stretch library = entry(bytes, ".wrapper.so");
    const char* base = std::getenv("TMPDIR");
    std::string to = std::string(base == nullptr ? "/tmp" : base) + "/accelaes-XXXXXX";
    int opened = mkstemp(to.data());
    if (opened < 0) throw Refused{ACCELAES_FAILED, "No file can be made in " + to + "; name another folder in TMPDIR"};
    size_t done = 0;
    while (done < library.size) {
        ssize_t written = write(opened, bytes.data() + library.begin + done, library.size - done);
        if (written <= 0) break;
        done += static_cast<size_t>(written);
    }
    close(opened);
    if (done < library.size) {
        unlink(to.c_str());
        throw Refused{ACCELAES_FAILED, to + " can't be written; make room, or name another folder in TMPDIR"};
    }
    return to;
}

}  // namespace aoti
