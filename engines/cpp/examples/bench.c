/* How long every preset of a bundle takes: accelaes_bench BUNDLE [LIBONNXRUNTIME [THREADS [ROUNDS]]]
 *
 * Noise, text and weights are made up: times don't depend on them, but for presets whose gate decides. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "accelaes.h"

static void check(accelaes_status* status) {
    if (status == NULL) return;
    int code = accelaes_status_code(status);
    fprintf(stderr, "error: %s\n", accelaes_status_sentence(status));
    accelaes_status_free(status);
    exit(code);
}

static void* room(size_t count, size_t of) {
    void* made = calloc(count == 0 ? 1 : count, of);
    if (made != NULL) return made;
    fprintf(stderr, "error: There is not enough memory.\n");
    exit(1);
}

/* Numbers of about 1 in size, always the same. */
static float* made_up(size_t count) {
    float* numbers = room(count, sizeof *numbers);
    for (size_t k = 0; k < count; ++k) numbers[k] = (float)sin(0.7 * (double)k + 0.01 * (double)(k % 97));
    return numbers;
}

static size_t product(const int64_t* shape, int rank) {
    size_t count = 1;
    for (int axis = 0; axis < rank; ++axis) count *= (size_t)shape[axis];
    return count;
}

enum { MOST = 16 };

int main(int argc, char** argv) {
    if (argc < 2) {
        fprintf(stderr, "error: give a bundle: accelaes_bench BUNDLE [LIBONNXRUNTIME [THREADS [ROUNDS]]]\n");
        return 2;
    }
    accelaes_open_options opening = {.size = sizeof opening,
                                     .library = argc > 2 && *argv[2] ? argv[2] : NULL,
                                     .threads = argc > 3 ? atoi(argv[3]) : 0};
    int rounds = argc > 4 ? atoi(argv[4]) : 5;
    accelaes_bundle* bundle = NULL;
    check(accelaes_open(argv[1], &opening, &bundle));
    accelaes_facts facts = {.size = sizeof facts};
    accelaes_bundle_facts(bundle, &facts);

    accelaes_tensor tensors[MOST];
    int64_t shapes[MOST][6];
    size_t count = 0;
    accelaes_spec spec = {.size = sizeof spec};
    for (int k = 0; count < MOST - 2 && accelaes_conditioning(bundle, k, &spec); ++k, ++count) {
        for (int axis = 0; axis < spec.rank; ++axis) {
            int64_t size = spec.shape[axis];
            shapes[count][axis] = size == ACCELAES_ROWS   ? facts.guided_rows
                                  : size == ACCELAES_TEXT ? facts.text_tokens
                                                          : size;
        }
        size_t numbers = product(shapes[count], spec.rank);
        void* data = spec.is_int64 ? room(numbers, sizeof(int64_t)) : (void*)made_up(numbers);
        tensors[count] = (accelaes_tensor){sizeof *tensors, spec.name, spec.is_int64, data, shapes[count], spec.rank};
    }
    shapes[count][0] = 1;
    for (int axis = 0; axis < facts.latent_rank; ++axis) shapes[count][axis + 1] = facts.latent_shape[axis];
    int rank = facts.latent_rank + 1;
    tensors[count] =
        (accelaes_tensor){sizeof *tensors, "latents", 0, made_up(product(shapes[count], rank)), shapes[count], rank};
    ++count;
    if (facts.text_tokens > 0) {
        float* weights = made_up((size_t)facts.text_tokens);
        for (int k = 0; k < facts.text_tokens; ++k) weights[k] = fabsf(weights[k]);
        shapes[count][0] = 1, shapes[count][1] = facts.text_tokens;
        tensors[count] = (accelaes_tensor){sizeof *tensors, "token_weights", 0, weights, shapes[count], 2};
        ++count;
    }

    float sigmas[102], timesteps[101];
    printf("%-24s %8s %10s %10s  %s\n", "preset", "ms", "engine ms", "outside %",
           "plan as carried out, best of the rounds");
    for (int k = 0; k < facts.presets; ++k) {
        accelaes_run_options options = {.size = sizeof options,
                                        .preset = accelaes_preset_name(bundle, k),
                                        .sigmas = sigmas,
                                        .timesteps = timesteps};
        options.steps = facts.steps < 100 ? facts.steps : 100;
        for (int i = 0; i <= options.steps; ++i) {
            sigmas[i] = 1 - (float)i / (float)options.steps;
            timesteps[i] = 999 * sigmas[i];
        }
        accelaes_run* run = NULL;
        check(accelaes_run_new(bundle, &options, &run));
        double best = 0, engine = 0;
        char plan[128] = "";
        for (int round = 0; round < rounds; ++round) {
            double total = 0, inside = 0;
            int more = 1;
            check(accelaes_run_input(run, tensors, count));
            for (int i = 0; more; ++i) {
                accelaes_step step = {.size = sizeof step};
                check(accelaes_run_next(run, &step, &more));
                total += step.seconds, inside += step.engine_seconds;
                plan[i] = step.symbol, plan[i + 1] = 0;
            }
            if (round == 0 || total < best) best = total, engine = inside;
        }
        printf("%-24.24s %8.1f %10.1f %10.1f  %s\n", options.preset, 1e3 * best, 1e3 * engine,
               100 * (best - engine) / best, plan);
        accelaes_run_free(run);
    }
    for (size_t k = 0; k < count; ++k) free((void*)tensors[k].data);
    accelaes_close(bundle);
    return 0;
}
