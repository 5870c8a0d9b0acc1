// Whole numbers of JSON: converting a number with a point or an exponent could leave the range.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>

namespace accelaes {

// json::type_error for anything else.
inline int64_t whole(const nlohmann::json& given) {
    bool fits = given.is_number_integer() && !(given.is_number_unsigned() && given.get<uint64_t>() > INT64_MAX);
    if (!fits) throw nlohmann::json::type_error::create(302, "a whole number was expected", &given);
    return given.get<int64_t>();
}

}  // namespace accelaes
