// Parts of the library by themselves, whose numbers go to standard output:
//     parts numbers SEED COUNT...
//     parts packed SEED IMAGES CHANNELS HEIGHT WIDTH PATCH
//     parts schedule TOKENS STEPS OPTION=VALUE...
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
        manifest.tokens = static_cast<int64_t>(number(2));
        manifest.scheduler = accelaes::Scheduler();
        auto& scheduler = *manifest.scheduler;
        for (int k = 4; k < count; ++k) {
            std::string option = words[k], name = option.substr(0, option.find('='));
            double value = std::strtod(option.c_str() + name.size() + 1, nullptr);
            if (name == "shift") scheduler.shift = value;
            if (name == "num_train_timesteps") scheduler.train = value;
            if (name == "use_dynamic_shifting") scheduler.dynamic = value != 0;
            if (name == "time_shift_type") scheduler.linear = value != 0;
            if (name == "base_shift") scheduler.base_shift = value;
            if (name == "max_shift") scheduler.max_shift = value;
            if (name == "base_image_seq_len") scheduler.base_tokens = value;
            if (name == "max_image_seq_len") scheduler.max_tokens = value;
            if (name == "shift_terminal") scheduler.terminal = value;
            if (name == "invert_sigmas") scheduler.inverted = value != 0;
            if (name == "use_karras_sigmas" && value != 0) scheduler.kind = accelaes::Scheduler::Kind::karras;
            if (name == "use_exponential_sigmas" && value != 0) scheduler.kind = accelaes::Scheduler::Kind::exponential;
            if (name == "use_beta_sigmas" && value != 0) scheduler.kind = accelaes::Scheduler::Kind::beta;
            if (name == "flux") scheduler.from_one = scheduler.called_by_sigma = value != 0;
        }
        std::vector<float> sigmas, timesteps;
        accelaes::make_schedule(manifest, static_cast<int64_t>(number(3)), sigmas, timesteps);
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
