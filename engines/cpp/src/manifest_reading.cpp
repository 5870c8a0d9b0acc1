#include "manifest_reading.hpp"

#include "failure.hpp"
#include "whole_numbers.hpp"

namespace accelaes {

using nlohmann::json;

namespace {

Size size_of(const json& given) {
    if (given.is_string()) {
        auto written = given.get<std::string>();
        bool digits = written.size() > 2 && written.size() < 12 && written.compare(1, 1, "-") == 0 &&
                      written.find_first_not_of("0123456789", 2) == std::string::npos;
        if (written.size() != 1 && !digits)
            throw json::type_error::create(302, "a shape's letter is " + written, &given);
        return {written[0], 0, digits ? std::stoll(written.substr(2)) : 0};
    }
    int64_t fixed = whole(given);
    if (fixed < 1 || fixed > INT32_MAX) throw json::type_error::create(302, "a shape has a size out of range", &given);
    return {0, fixed};
}

Type type_of(const json& tensor) {
    static const std::map<std::string, Type> known = {
        {"fp32", Type::f32}, {"int64", Type::i64}, {"fp16", Type::f16}, {"bf16", Type::bf16}};
    auto dtype = tensor.at("dtype").get<std::string>();
    auto found = known.find(dtype);
    if (found == known.end())
        refuse("The bundle's tensor " + tensor.at("name").get<std::string>() + " is " + dtype +
               ", which this release doesn't know; install a newer libaccelaes.");
    return found->second;
}

}  // namespace

std::vector<Spec> specs_of(const json& given) {
    std::vector<Spec> specs;
    for (const auto& one : given) {
        Spec spec{one.at("name"), type_of(one), {}};
        if (spec.name.empty()) throw json::type_error::create(302, "a tensor has no name", &one);
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
