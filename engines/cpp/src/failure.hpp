// What goes wrong inside the library: a code of accelaes.h and one sentence. Becomes a status at the boundary.
#pragma once

#include <exception>
#include <string>

#include "accelaes.h"

namespace accelaes {

struct Failure : std::exception {
    int code;
    std::string sentence;

    Failure(int of, std::string said) : code(of), sentence(std::move(said)) {}
    const char* what() const noexcept override { return sentence.c_str(); }
};

[[noreturn]] inline void refuse(std::string sentence) { throw Failure(ACCELAES_INPUT, std::move(sentence)); }

}  // namespace accelaes
