// A manifest: read or refused, and the schedules of what was read.
#include "manifest.hpp"

#include "fuzz/input.hpp"
#include "solver.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    std::string written(reinterpret_cast<const char*>(data), size);
    fuzz::tried([&] {
        std::string path = fuzz::file(written, "manifest.json");
        auto manifest = accelaes::read_manifest(path.substr(0, path.rfind('/')));
        accelaes::Device host("cpu", nullptr, "");
        std::vector<float> latents(16, 0.5f), prediction(16, 0.25f);
        for (int64_t steps : {1, 2, 28}) {
            accelaes::Solver solver(manifest, steps);
            solver.begin(host, latents.size());
            for (int64_t i = 0; i < steps; ++i) solver.move(host, i, prediction.data(), latents.data(), latents.size());
        }
    });
    return 0;
}
