// AOTInductor's packages: zip files whose entries are stored as they are, with a shared library among them.
#pragma once

#include <string>

namespace aoti {

// The package's shared library as a file of its own, in the folder for temporary files. Refused for a damaged package.
std::string extracted_library(const std::string& path);

}  // namespace aoti
