// SHA-256 (FIPS 180-4) of a file, as hex digits.
#pragma once

#include <string>

namespace accelaes {

std::string sha256_of(const std::string& path);

}  // namespace accelaes
