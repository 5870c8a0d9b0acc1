#include "weights.hpp"

#include <cstring>
#include <nlohmann/json.hpp>

#include "format.hpp"
#include "whole_numbers.hpp"

namespace accelaes {
namespace {

[[noreturn]] void damaged(const std::string& path, const std::string& what) {
    throw Refused{ACCELAES_INPUT, path + " is no safetensors file (" + what + "); build the bundle again"};
}

// Bytes of a number of these; 0 for one that weights don't have.
uint64_t width_of(const std::string& dtype) {
    if (dtype == "F32") return 4;
    if (dtype == "I64") return 8;
    if (dtype == "F16" || dtype == "BF16") return 2;
    return dtype == "BOOL" ? 1 : 0;
}

}  // namespace

Weights::Weights(const std::string& path) : file_(path) {
    if (file_.size() < 8) damaged(path, "it is too short");
    try {
        char* bytes = file_.data();
        uint64_t length = 0;
        std::memcpy(&length, bytes, sizeof length);
        if (length > file_.size() - 8) damaged(path, "its header is cut off");
        const auto header = nlohmann::json::parse(bytes + 8, bytes + 8 + length);
        uint64_t room = file_.size() - 8 - length;
        for (const auto& [name, about_it] : header.items()) {
            if (name == "__metadata__") continue;
            Weight weight{about_it.at("dtype"), {}, nullptr, 0};
            uint64_t count = width_of(weight.dtype);
            for (const auto& size : about_it.at("shape")) {
                weight.shape.push_back(whole(size));
                if (weight.shape.back() < 0 ||
                    (count > 0 && static_cast<uint64_t>(weight.shape.back()) > room / count + 1))
                    damaged(path, name + " is larger than the file");
                count *= static_cast<uint64_t>(weight.shape.back());
            }
            int64_t begin = whole(about_it.at("data_offsets").at(0)), end = whole(about_it.at("data_offsets").at(1));
            if (begin < 0 || end < begin || static_cast<uint64_t>(end) > room ||
                static_cast<uint64_t>(end - begin) != count || (count == 0 && width_of(weight.dtype) == 0))
                damaged(path, name + " doesn't lie in it");
            weight.data = bytes + 8 + length + begin;
            weight.bytes = static_cast<size_t>(end - begin);
            all_[name] = std::move(weight);
        }
    } catch (const nlohmann::json::exception& error) {
        damaged(path, error.what());
    }
}

}  // namespace accelaes
