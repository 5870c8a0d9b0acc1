/* libaccelaes: carries out the presets of a bundle, without Python.
 *
 * A bundle is opened once and shared by threads; a run is one denoising of a few images, of one thread at a time.
 * Every function that can fail returns a status: NULL is good, anything else says why in one sentence and is freed by
 * accelaes_status_free. Structs begin with their own size, so that later releases can add to them; zero means default.
 * docs/embedding.md has examples.
 */
#ifndef ACCELAES_H
#define ACCELAES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ACCELAES_API __attribute__((visibility("default")))

/* The command line's exit codes. */
enum accelaes_code {
    ACCELAES_GOOD = 0,
    ACCELAES_FAILED = 1,  /* the engine failed, or the run was cancelled */
    ACCELAES_INPUT = 2,   /* what was given is wrong, or the bundle is damaged */
    ACCELAES_MISSING = 4, /* a library isn't there */
};

typedef struct accelaes_status accelaes_status;
typedef struct accelaes_bundle accelaes_bundle;
typedef struct accelaes_run accelaes_run;

ACCELAES_API int accelaes_status_code(const accelaes_status* status);
ACCELAES_API const char* accelaes_status_sentence(const accelaes_status* status);
ACCELAES_API void accelaes_status_free(accelaes_status* status);

typedef struct accelaes_open_options {
    size_t size;
    const char* library; /* the engine's: a path of libonnxruntime.so, or of libtorch_cpu.so; NULL: found by its name */
    const char* engines; /* folder of libaccelaes_onnxruntime.so and its like; NULL: where libaccelaes is */
    int threads;         /* of the engine; 0: one per core */
    int skip_hashes;     /* 1: files are compared by size alone */
    int allow_code;      /* 1: a bundle whose engines are native code (aoti) may run it */
    const char* device;  /* "cpu", "cuda" or "cuda:1"; NULL: "cpu" */
    void* stream;        /* a cudaStream_t that all work is done on; NULL: one of the bundle's own */
} accelaes_open_options;

/* Open the bundle in a folder: its manifest, its files' hashes, its engine. */
ACCELAES_API accelaes_status* accelaes_open(const char* folder, const accelaes_open_options* options,
                                            accelaes_bundle** bundle);

/* Let go of a bundle. Runs of it go on. */
ACCELAES_API void accelaes_close(accelaes_bundle* bundle);

typedef struct accelaes_facts {
    size_t size;
    int images;              /* a run has at most so many */
    int tokens, text_tokens; /* N and M */
    int guided_rows;         /* rows of an image's conditioning in a guided run: 2, or 1 where nothing is guided */
    int uncond_first;        /* whether the unconditional rows come first */
    int steps;               /* T where nobody asks for another */
    double guidance;         /* scale where nobody asks for another */
    int latent_rank;         /* without the batch axis */
    int64_t latent_shape[4];
    int presets;                       /* how many there are */
    int encodes;                       /* whether the bundle has text encoders: a run may be given ids */
    int picture_height, picture_width; /* 0 where the bundle has no VAE */
    int picture_frames;                /* of a video; 1 for pictures */
} accelaes_facts;

ACCELAES_API void accelaes_bundle_facts(const accelaes_bundle* bundle, accelaes_facts* facts);

/* The name of preset `index`, or NULL. Lives as long as the bundle. */
ACCELAES_API const char* accelaes_preset_name(const accelaes_bundle* bundle, int index);

/* Sizes that vary, in a shape. */
#define ACCELAES_ROWS (-1) /* both halves of guidance included */
#define ACCELAES_TEXT (-2) /* the text's tokens: text_tokens, or any other where the engine's text is dynamic */

typedef struct accelaes_spec {
    size_t size;
    const char* name; /* lives as long as the bundle */
    int is_int64;
    int rank;
    int64_t shape[6];
} accelaes_spec;

/* The conditioning that a run needs as input, beside "latents" and "token_weights": tensor `index`; 0 where there is no
 * such one, else 1. */
ACCELAES_API int accelaes_conditioning(const accelaes_bundle* bundle, int index, accelaes_spec* spec);

typedef struct accelaes_run_options {
    size_t size;
    const char* preset;     /* its name; NULL: the first */
    const char* plan;       /* symbols, one a step; NULL: the preset's */
    int steps;              /* T; 0: the preset's */
    int images;             /* b; 0: 1 */
    int unguided;           /* 1: no classifier-free guidance, one row an image */
    double guidance;        /* the scale; 0: the bundle's */
    const float* sigmas;    /* [T + 1]: a step moves latents by (sigmas[i + 1] - sigmas[i]) x prediction; NULL: by the
                               scheduler of a bundle with components, where it is one this library knows */
    const float* timesteps; /* [T], as the transformer is called with */
    uint64_t seed;          /* of the noise, where a run is given no "latents": the same as torch's on a CPU */
} accelaes_run_options;

/* How much memory accelaes_run_new will take, of the process and of its device. */
ACCELAES_API accelaes_status* accelaes_run_bytes(const accelaes_bundle* bundle, const accelaes_run_options* options,
                                                 size_t* host, size_t* device);

/* Prepare a run: everything it needs is allocated here. */
ACCELAES_API accelaes_status* accelaes_run_new(const accelaes_bundle* bundle, const accelaes_run_options* options,
                                               accelaes_run** run);
ACCELAES_API void accelaes_run_free(accelaes_run* run);

typedef struct accelaes_tensor {
    size_t size;
    const char* name;
    int is_int64;     /* 0: fp32 */
    const void* data; /* contiguous; copied */
    const int64_t* shape;
    int rank;
} accelaes_tensor;

/* What a run is made of: "latents" [b, ...], the noise, or nothing: it is drawn from the seed; the engine's
 * conditioning by its names, [rows, ...] with both halves of guidance where it is guided; "token_weights" [b, M], where
 * the preset has a mask. Where the bundle has text encoders, in place of what they make of a text its ids:
 * "tokenizer.input_ids" [rows, length] int64 of every tokenizer, padded as the pipeline does, and
 * "tokenizer.attention_mask" (all ones where it is left out). Begins the run. */
ACCELAES_API accelaes_status* accelaes_run_input(accelaes_run* run, const accelaes_tensor* tensors, size_t count);

typedef struct accelaes_prompt {
    size_t size;
    const char* text;                /* UTF-8 */
    const char* negative;            /* of a guided run; NULL: "" */
    const char *text_2, *negative_2; /* of the pipeline's second tokenizer; NULL: as its first */
    const char *text_3, *negative_3; /* and of its third */
} accelaes_prompt;

/* The same as accelaes_run_input, from prompts: one for each image, or fewer that each are of as many. The bundle's own
 * tokenizers and text encoders read them, and for a preset with a mask its words are weighed as in Python. `tensors` is
 * what else accelaes_run_input takes, such as "latents"; NULL: nothing. Begins the run. */
ACCELAES_API accelaes_status* accelaes_run_prompt(accelaes_run* run, const accelaes_prompt* prompts, size_t count,
                                                  const accelaes_tensor* tensors, size_t tensor_count);

typedef struct accelaes_word {
    size_t size;
    const char* text; /* UTF-8; lives until the run's next input */
    double weight;    /* 0 to 1 */
} accelaes_word;

/* Word `index` of the prompt of image `image` and what it weighs in the mask; 0 where there is no such one, else 1. */
ACCELAES_API int accelaes_run_word(const accelaes_run* run, int image, int index, accelaes_word* word);

typedef struct accelaes_step {
    size_t size;
    int index;
    char symbol; /* as it was carried out: D, a bucket's letter, or '.' */
    int tokens;  /* computed, of N */
    double seconds, engine_seconds;
} accelaes_step;

/* Carry out the next step. `more` is 0 after the last. */
ACCELAES_API accelaes_status* accelaes_run_next(accelaes_run* run, accelaes_step* step, int* more);

/* The latents [b, ...] as they are now, fp32, in the process's memory; `count` numbers. Valid until the next step. NULL
 * where the device has failed. */
ACCELAES_API const float* accelaes_run_latents(const accelaes_run* run, size_t* count);

/* The latents as they are now as pictures, [b, height, width, 3] bytes, or videos, [b, frames, height, width, 3], which
 * `size` is the number of. */
ACCELAES_API accelaes_status* accelaes_run_picture(const accelaes_run* run, unsigned char* pixels, size_t size);

/* The focus index [b, n] of the last sparse step, in the process's memory; NULL, and `n` 0, before one. */
ACCELAES_API const int64_t* accelaes_run_focus(const accelaes_run* run, int* n);

/* Stop before the next step, from any thread: accelaes_run_next then says that the run was cancelled. */
ACCELAES_API void accelaes_run_cancel(accelaes_run* run);

#ifdef __cplusplus
}
#endif
#endif
