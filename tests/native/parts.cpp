// Parts of the library by themselves, whose numbers go to standard output:
//     parts numbers SEED COUNT...
//     parts packed SEED IMAGES CHANNELS HEIGHT WIDTH PATCH
//     parts halves TYPE COUNT    as many numbers on standard input, rounded to fp16 (10) or bf16 (16)
//     parts solver TOKENS STEPS    sigmas, timesteps and the latents [64] after every step, by the scheduler of the
//                                  components on standard input, where a step predicts cos(latents + step)
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "failure.hpp"
#include "manifest_reading.hpp"
#include "noise.hpp"
#include "solver.hpp"

int main(int count, char** words) {
    auto number = [&](int k) { return std::strtoull(words[k], nullptr, 10); };
    auto write = [](const std::vector<float>& numbers) {
        std::fwrite(numbers.data(), sizeof(float), numbers.size(), stdout);
    };
    if (std::string(words[1]) == "halves") {
        std::vector<float> numbers(number(3));
        if (std::fread(numbers.data(), sizeof(float), numbers.size(), stdin) != numbers.size()) return 1;
        auto type = static_cast<accelaes::Type>(number(2));
        for (float& one : numbers) {
            uint16_t half;
            accelaes::put_number(&half, type, 0, one);
            one = accelaes::number_of(&half, type, 0);
        }
        write(numbers);
        return 0;
    }
    if (std::string(words[1]) == "packed") {
        accelaes::Manifest manifest;
        manifest.channels = static_cast<int64_t>(number(4));
        manifest.height = static_cast<int64_t>(number(5));
        manifest.width = static_cast<int64_t>(number(6));
        manifest.patch = static_cast<int64_t>(number(7));
        manifest.tokens = manifest.height / manifest.patch * (manifest.width / manifest.patch);
        manifest.packed = true;
        std::vector<float> latents(number(3) * number(4) * number(5) * number(6));
        accelaes::draw_latents(manifest, number(2), static_cast<int64_t>(number(3)), latents.data());
        write(latents);
        return 0;
    }
    if (std::string(words[1]) == "solver") {
        accelaes::Manifest manifest;
        manifest.tokens = static_cast<int64_t>(number(2));
        accelaes::read_components(manifest, nlohmann::json::parse(std::cin));
        auto steps = static_cast<int64_t>(number(3));
        try {
            accelaes::Solver solver(manifest, steps);
            write(solver.sigmas());
            write(solver.timesteps());
            std::vector<float> latents(64), prediction(latents.size());
            for (size_t k = 0; k < latents.size(); ++k) latents[k] = 0.1f * static_cast<float>(k) - 3.0f;
            accelaes::Device host("cpu", nullptr, "");
            solver.begin(host, latents.size());
            for (int64_t i = 0; i < steps; ++i) {
                for (size_t k = 0; k < latents.size(); ++k)
                    prediction[k] = std::cos(latents[k] + static_cast<float>(i));
                solver.move(host, i, prediction.data(), latents.data(), latents.size());
                write(latents);
            }
        } catch (const accelaes::Failure& failure) {
            std::fprintf(stderr, "%s\n", failure.sentence.c_str());
            return failure.code;
        }
        return 0;
    }
    for (int k = 3; k < count; ++k) {
        std::vector<float> numbers(number(k));
        accelaes::draw_normal(number(2), numbers.data(), numbers.size());
        write(numbers);
    }
}
