#include "manifest_reading.hpp"

#include "failure.hpp"
#include "whole_numbers.hpp"

namespace accelaes {

using nlohmann::json;

namespace {

Size size_of(const json& given) {
    if (given.is_string()) {
        auto letter = given.get<std::string>();
        if (letter.size() != 1) throw json::type_error::create(302, "a shape's letter is " + letter, &given);
        return {letter[0], 0};
    }
    int64_t fixed = whole(given);
    if (fixed < 1 || fixed > INT32_MAX) throw json::type_error::create(302, "a shape has a size out of range", &given);
    return {0, fixed};
}

}  // namespace

std::vector<Spec> specs_of(const json& given) {
    std::vector<Spec> specs;
    for (const auto& one : given) {
        Spec spec{one.at("name"), one.at("dtype") == "int64", {}};
        if (spec.name.empty()) throw json::type_error::create(302, "a tensor has no name", &one);
        if (!spec.int64 && one.at("dtype") != "fp32") {
            refuse("The bundle's tensor " + spec.name + " is " + one.at("dtype").get<std::string>() +
                   ", and this runtime takes fp32 engines: build the bundle with --dtype fp32.");
        }
        for (const auto& size : one.at("shape")) spec.shape.push_back(size_of(size));
        specs.push_back(std::move(spec));
    }
    return specs;
}

int64_t count_of(const json& given, const char* name) {
    int64_t count = whole(given.at(name));
    if (count < 0 || count > INT32_MAX)
        throw json::type_error::create(302, std::string(name) + " is out of range", &given);
    return count;
}

Program program_of(const json& given) {
    Program program{given.at("files"), specs_of(given.at("inputs")), specs_of(given.at("outputs"))};
    if (program.files.empty() || program.inputs.empty() || program.outputs.empty())
        throw json::type_error::create(302, "a graph has no files or no tensors", &given);
    return program;
}

}  // namespace accelaes
