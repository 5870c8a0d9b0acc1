// What engine formats share: failures that leave them as a code and a sentence.
#pragma once

#include <cstdio>
#include <exception>
#include <string>

#include "accelaes.h"
#include "engine.hpp"

namespace accelaes {

struct Refused {
    int code;
    std::string sentence;
};

// `work`, whose failure becomes a sentence.
template <typename Work>
auto guarded(EngineError* error, Work work) -> decltype(work()) {
    try {
        return work();
    } catch (const Refused& refused) {
        error->code = refused.code;
        std::snprintf(error->sentence, sizeof error->sentence, "%s", refused.sentence.c_str());
    } catch (const std::exception& other) {
        error->code = ACCELAES_FAILED;
        std::snprintf(error->sentence, sizeof error->sentence, "%s", other.what());
    }
    return {};
}

}  // namespace accelaes
