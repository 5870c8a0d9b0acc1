// Parts that the readers of a manifest share. Every number is checked for what sizes can be.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "manifest.hpp"

namespace accelaes {

std::vector<Spec> specs_of(const nlohmann::json& given);
int64_t count_of(const nlohmann::json& given, const char* name);
Program program_of(const nlohmann::json& given);

// What the bundle has of the pipeline around the transformer.
void read_components(Manifest& manifest, const nlohmann::json& given);

}  // namespace accelaes
