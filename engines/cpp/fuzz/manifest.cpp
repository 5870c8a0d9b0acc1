// A manifest: read or refused, and the schedules of what was read.
#include "manifest.hpp"
#include "fuzz/input.hpp"
#include "schedule.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    std::string written(reinterpret_cast<const char*>(data), size);
    fuzz::tried([&] {
        std::string path = fuzz::file(written, "manifest.json");
        auto manifest = accelaes::read_manifest(path.substr(0, path.rfind('/')));
        std::vector<float> sigmas, timesteps;
        for (int64_t steps : {1, 2, 28}) accelaes::make_schedule(manifest, steps, sigmas, timesteps);
    });
    return 0;
}
