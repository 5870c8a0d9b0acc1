#include "cubins.h"

#include <algorithm>
#include <cstring>

// The pack as it is, in the library's read-only data.
asm(R"(
    .pushsection .rodata
    .balign 64
    .local accelaes_pack
accelaes_pack:
    .incbin ")" ACCELAES_CUBINS R"("
    .popsection
)");

extern "C" {
extern unsigned char const accelaes_pack[] __attribute__((visibility("hidden")));
}

namespace accelaes {
namespace {

struct Header {
    char magic[8];
    std::uint32_t rows;
    std::uint32_t rowBytes;
};

Row const* table(std::uint32_t& rows) noexcept {
    auto const* header = reinterpret_cast<Header const*>(accelaes_pack);
    bool const whole = std::memcmp(header->magic, "AXCUBIN1", sizeof(header->magic)) == 0 && header->rowBytes == sizeof(Row);
    rows = whole ? header->rows : 0;
    return reinterpret_cast<Row const*>(accelaes_pack + sizeof(Header));
}

// Cubins run on the same major and the same or a later minor number; from sm_90 on, on their own number alone.
bool runs(std::uint32_t architecture, int major, int minor) noexcept {
    auto const ownMajor = static_cast<int>(architecture / 10);
    auto const ownMinor = static_cast<int>(architecture % 10);
    return ownMajor == major && (major < 9 ? ownMinor <= minor : ownMinor == minor);
}

}  // namespace

std::vector<Row const*> candidates(int major, int minor, Kind const& kind) {
    std::uint32_t rows = 0;
    Row const* const first = table(rows);
    std::vector<Row const*> found;
    std::uint32_t nearest = 0;
    for (Row const* row = first; row != first + rows; ++row) {
        if (row->dtype == kind.dtype && row->headDim == kind.headDim && row->biased == kind.biased
            && runs(row->architecture, major, minor)) {
            found.push_back(row);
            nearest = std::max(nearest, row->architecture);
        }
    }
    found.erase(std::remove_if(found.begin(), found.end(), [&](Row const* row) { return row->architecture != nearest; }),
        found.end());
    std::stable_sort(found.begin(), found.end(), [](Row const* a, Row const* b) { return a->best > b->best; });
    return found;
}

void const* image(Row const& row) noexcept { return accelaes_pack + row.offset; }

}  // namespace accelaes
