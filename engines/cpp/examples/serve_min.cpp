// One bundle behind an address: accelaes_serve BUNDLE [PORT [LIBONNXRUNTIME [THREADS]]]
//
//     curl -o star.png "localhost:8080/draw?prompt=a+red+star&preset=accelaes&seed=1&steps=20"
//
// A thread draws one picture at a time; the others wait in line.
#include <httplib.h>

#include <accelaes.hpp>
#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "png.hpp"

namespace {

// The number of a parameter, or 0 where it isn't given.
template <typename Number>
Number number(const httplib::Request& request, const char* name) {
    if (!request.has_param(name)) return 0;
    std::string given = request.get_param_value(name);
    char* end = nullptr;
    double value = std::strtod(given.c_str(), &end);
    if (given.empty() || *end != '\0' || !(value >= 0 && value < 9e15)) {
        std::string said = std::string(name) + " is \"" + given + "\", which is no number from 0 on; give one";
        throw accelaes::Error(ACCELAES_INPUT, said.c_str());
    }
    return static_cast<Number>(value);
}

std::string drawn(const accelaes::Bundle& bundle, const httplib::Request& request) {
    std::string text = request.get_param_value("prompt"), preset = request.get_param_value("preset");
    if (text.empty()) throw accelaes::Error(ACCELAES_INPUT, "there is no prompt; give one: /draw?prompt=a+red+star");
    auto options = accelaes::sized<accelaes_run_options>();
    options.preset = preset.empty() ? nullptr : preset.c_str();
    options.steps = number<int>(request, "steps");
    options.seed = number<uint64_t>(request, "seed");
    options.guidance = number<double>(request, "guidance");
    auto run = bundle.run(options);
    auto prompt = accelaes::sized<accelaes_prompt>();
    prompt.text = text.c_str();
    run.prompt({prompt});
    while (run.next().second) {
    }
    auto facts = bundle.facts();
    auto pixels = run.picture(accelaes::picture_bytes(facts));
    return png(pixels.data(), facts.picture_width, facts.picture_height);
}

}  // namespace

int main(int count, char** words) {
    if (count < 2) {
        std::fprintf(stderr, "error: give a bundle: accelaes_serve BUNDLE [PORT [LIBONNXRUNTIME [THREADS]]]\n");
        return ACCELAES_INPUT;
    }
    try {
        auto opening = accelaes::sized<accelaes_open_options>();
        opening.library = count > 3 && *words[3] ? words[3] : nullptr;
        opening.threads = count > 4 ? std::atoi(words[4]) : 0;
        accelaes::Bundle bundle(words[1], opening);
        httplib::Server server;
        server.new_task_queue = [] { return new httplib::ThreadPool(1); };
        server.Get("/draw", [&](const httplib::Request& request, httplib::Response& response) {
            try {
                response.set_content(drawn(bundle, request), "image/png");
            } catch (const accelaes::Error& error) {
                response.status = error.code == ACCELAES_INPUT ? 400 : 500;
                response.set_content(std::string(error.what()) + "\n", "text/plain; charset=utf-8");
            }
        });
        int port = count > 2 ? std::atoi(words[2]) : 8080;
        if (port == 0)
            port = server.bind_to_any_port("127.0.0.1");
        else if (!server.bind_to_port("127.0.0.1", port))
            port = -1;
        if (port < 0) throw accelaes::Error(ACCELAES_FAILED, "the port can't be had; give another");
        std::printf("http://127.0.0.1:%d/draw?prompt=\n", port);
        std::fflush(stdout);
        return server.listen_after_bind() ? ACCELAES_GOOD : ACCELAES_FAILED;
    } catch (const accelaes::Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return error.code;
    }
}
