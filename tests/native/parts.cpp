// Parts of the library by themselves, whose numbers go to standard output:
//     parts numbers SEED COUNT...
//     parts packed SEED IMAGES CHANNELS HEIGHT WIDTH PATCH
//     parts schedule SHIFT TRAIN STEPS
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "noise.hpp"
#include "schedule.hpp"

int main(int count, char** words) {
    auto number = [&](int k) { return std::strtoull(words[k], nullptr, 10); };
    auto write = [](const std::vector<float>& numbers) {
        std::fwrite(numbers.data(), sizeof(float), numbers.size(), stdout);
    };
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
    if (std::string(words[1]) == "schedule") {
        accelaes::Manifest manifest;
        manifest.scheduler = accelaes::Scheduler{std::strtod(words[2], nullptr), std::strtod(words[3], nullptr), ""};
        std::vector<float> sigmas, timesteps;
        accelaes::make_schedule(manifest, static_cast<int64_t>(number(4)), sigmas, timesteps);
        write(sigmas);
        write(timesteps);
        return 0;
    }
    for (int k = 3; k < count; ++k) {
        std::vector<float> numbers(number(k));
        accelaes::draw_normal(number(2), numbers.data(), numbers.size());
        write(numbers);
    }
}
