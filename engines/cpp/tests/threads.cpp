// Eight threads on one bundle: threads BUNDLE LIBRARY ROUNDS
//
// Each draws pictures of prompts of its own, one after another; all must be what one thread alone draws, to the bit. A
// ninth cancels runs of its own meanwhile.
#include <accelaes.hpp>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

namespace {

std::vector<unsigned char> drawn(const accelaes::Bundle& bundle, int which) {
    const char* const prompts[] = {"an intricate red star", "a (glossy:1.2) blue ring, plain ground",
                                   "two green circles"};
    auto facts = bundle.facts();
    auto options = accelaes::sized<accelaes_run_options>();
    options.preset = accelaes_preset_name(bundle.get(), which % facts.presets);
    options.seed = static_cast<uint64_t>(which);
    options.steps = 8;
    auto run = bundle.run(options);
    auto prompt = accelaes::sized<accelaes_prompt>();
    prompt.text = prompts[which % 3];
    run.prompt({prompt});
    while (run.next().second) {
    }
    return run.picture(accelaes::picture_bytes(facts));
}

// A run that another thread stops; whether it was stopped before its end.
bool cancelled(const accelaes::Bundle& bundle) {
    auto options = accelaes::sized<accelaes_run_options>();
    auto run = bundle.run(options);
    auto prompt = accelaes::sized<accelaes_prompt>();
    prompt.text = "a red star";
    run.prompt({prompt});
    std::thread other([&] { run.cancel(); });
    bool stopped = false;
    try {
        while (run.next().second) {
        }
    } catch (const accelaes::Error&) {
        stopped = true;
    }
    other.join();
    return stopped;
}

}  // namespace

int main(int, char** words) {
    try {
        auto opening = accelaes::sized<accelaes_open_options>();
        opening.library = words[2];
        opening.threads = 1;
        int rounds = std::atoi(words[3]);
        std::atomic<int> apart{0}, stopped{0};
        std::vector<std::vector<std::vector<unsigned char>>> found(8);
        accelaes::Bundle bundle(words[1], opening);
        std::vector<std::thread> threads;
        for (int k = 0; k < 8; ++k) {
            threads.emplace_back([&, k] {
                for (int round = 0; round < rounds; ++round)
                    found[static_cast<size_t>(k)].push_back(drawn(bundle, 8 * round + k));
            });
        }
        threads.emplace_back([&] {
            for (int round = 0; round < rounds; ++round) stopped += cancelled(bundle);
        });
        for (auto& thread : threads) thread.join();
        for (int k = 0; k < 8; ++k) {
            for (int round = 0; round < rounds; ++round)
                apart += found[static_cast<size_t>(k)][static_cast<size_t>(round)] != drawn(bundle, 8 * round + k);
        }
        std::printf("%d pictures, %d apart, %d of %d runs stopped\n", 8 * rounds, apart.load(), stopped.load(), rounds);
        int code = apart == 0 ? 0 : 1;
#ifdef __SANITIZE_THREAD__
        // The engine's library isn't instrumented: as it ends, its globals seem to go under its own threads.
        std::fflush(stdout);
        std::_Exit(code);
#endif
        return code;
    } catch (const accelaes::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return error.code;
    }
}
