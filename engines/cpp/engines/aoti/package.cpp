#include "aoti/package.hpp"

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <system_error>
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

bool ends_with(const std::string& name, const std::string& ending) {
    return name.size() >= ending.size() && name.compare(name.size() - ending.size(), ending.size(), ending) == 0;
}

// The entries whose names end so, without their folders, by the zip's directory at its end (APPNOTE 4.3.6 to 4.3.16,
// 4.5.3 for large ones).
std::map<std::string, Stretch> entries(const std::vector<char>& bytes, const std::string& ending) {
    std::map<std::string, Stretch> found;
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
        if (ends_with(called, ending)) {
            if (method != 0) damaged("its code is compressed");
            size_t begin = local + 30 + number(bytes, local + 26, 2) + number(bytes, local + 28, 2);
            if (begin > bytes.size() || size > bytes.size() - begin) damaged("its code is cut off");
            found[called.substr(called.rfind('/') + 1)] = {begin, size};
        }
        at += 46 + name + extra + note;
    }
    return found;
}

void write_file(const std::string& path, const char* data, size_t size) {
    std::ofstream file(path, std::ios::binary);
    file.write(data, static_cast<std::streamsize>(size));
    file.flush();
    if (!file) throw Refused{ACCELAES_FAILED, path + " can't be written; make room, or name another folder in TMPDIR"};
}

}  // namespace

Extracted::Extracted(const std::string& path, bool kernels) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    auto libraries = entries(bytes, ".wrapper.so");
    if (libraries.empty()) damaged("it has no library");
    auto wanted = kernels ? entries(bytes, ".cubin") : std::map<std::string, Stretch>();
    wanted.insert(*libraries.begin());
    const char* base = std::getenv("TMPDIR");
    std::string made = std::string(base == nullptr ? "/tmp" : base) + "/accelaes-XXXXXX";
    if (mkdtemp(made.data()) == nullptr)
        throw Refused{ACCELAES_FAILED, "No folder can be made as " + made + "; name another one in TMPDIR"};
    folder_ = made;
    library_ = folder_ + "/" + libraries.begin()->first;
    try {
        for (const auto& [name, where] : wanted)
            write_file(folder_ + "/" + name, bytes.data() + where.begin, where.size);
    } catch (...) {
        remove();
        throw;
    }
}

void Extracted::remove() {
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
    folder_.clear();
}

}  // namespace aoti
