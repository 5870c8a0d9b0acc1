// What a bundle says of itself, read from manifest.json and checked for what a run relies on.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "mechanisms.hpp"

namespace accelaes {

// A size of a shape: a number, or a letter that varies (then `fixed` is 0), less so many.
struct Size {
    char letter = 0;
    int64_t fixed = 0;
    int64_t less = 0;
};

struct Spec {
    std::string name;
    Type type = Type::f32;
    std::vector<Size> shape;

    bool is_int64() const { return type == Type::i64; }
};

struct Program {
    std::vector<std::string> files;  // its own first
    std::vector<Spec> inputs, outputs;
};

struct FocusChoice {
    bool moving = false;
    int mask_step = -1;  // -1: none
    double fraction = 0;
};

// Which words of a prompt weigh.
struct WordScoring {
    double threshold = 0.6;
    std::string scope = "phrase";
};

struct Preset {
    std::string name;
    int steps = 0;
    std::map<int, std::string> plans;
    bool by_sigma = false;  // what the clock counts
    double theta = 0;
    std::vector<double> sigmas;  // [T + 1] that its learned coefficients are for; none where it has none
    WordScoring words;
    std::optional<FocusChoice> focus;
    std::vector<Spec> state;
    std::map<std::string, Program> programs;

    bool has(const std::string& program) const { return programs.count(program) > 0; }
};

// A text encoder: `input_ids` and `attention_mask` [b, M] to what the conditioning is made of.
struct Encoder {
    std::string name, tokenizer;
    bool masked = false;  // whether padding is masked when a text is encoded
    int64_t length = 0, rows = 0;
    Program graph;
};

// A run of text positions and the tokenizers that fill it.
struct TextRun {
    std::vector<std::string> tokenizers;
    int64_t length = 0;
    bool wrapped = false;  // the prompt stands within a text of the pipeline's own
};

enum class Cleaning { none, lower, other };

// From denoised latents to pictures.
struct Vae {
    Program latents, decoder;
    int64_t rows = 0;
};

// What DDIM and DPM-Solver++ have in common: noise of a known share at every training timestep.
struct Diffusion {
    enum class Betas { linear, scaled_linear, cosine };
    enum class Spacing { linspace, leading, trailing };
    using Prediction = Move::Prediction;

    bool ddim = false;  // otherwise DPM-Solver++
    Betas betas = Betas::linear;
    double beta_start = 1e-4, beta_end = 0.02;
    Spacing spacing = Spacing::leading;
    int64_t offset = 0;
    Prediction prediction = Prediction::noise;
    bool alpha_to_one = true;  // DDIM's
    double clipped_to = 0;     // and what it clips the sample to; 0: not
    int64_t order = 2;         // DPM-Solver++'s
    bool heun = false, lower_at_end = true, euler_at_end = false, ends_at_zero = true;
};

// Flow matching by Euler's method, or a diffusion's solver; `unknown` says what else the bundle's scheduler is.
struct Scheduler {
    std::optional<Diffusion> diffusion;  // in place of all that is below but `train`

    enum class Kind { even, karras, exponential, beta };

    double shift = 1, train = 1000;
    bool dynamic = false, linear = false;  // shifted by the number of tokens
    double base_shift = 0.5, max_shift = 1.15, base_tokens = 256, max_tokens = 4096;
    double terminal = 0;  // what the last sigma is stretched to; 0: not
    bool inverted = false;
    Kind kind = Kind::even;
    bool from_one = false;         // the pipeline itself gives sigmas from 1 to 1/T
    bool called_by_sigma = false;  // and its transformer a thousandth of the timestep
    std::string unknown;
};

struct CacheEntry {
    std::string name;
    Type type = Type::f32;
    int64_t heads = 0, head_dim = 0;
};

// Blocks that a step may leave out: what they change in a dense step, which it adds instead, and the engine that does
// so.
struct BlockRange {
    std::vector<Spec> changes;
    Program engine;
};

enum class Layout { uncond_cond, cond_uncond, separate, none };

struct File {
    std::string name, sha256;
    uint64_t size = 0;
};

struct Manifest {
    std::string backend;
    std::map<std::string, std::string> built_with;  // package to version
    std::vector<std::string> engine_files;
    std::vector<File> files;
    Layout layout = Layout::none;
    int steps = 0;
    double guidance = 0;
    int64_t batch = 0, tokens = 0, text_tokens = 0;
    bool dynamic_text = false;
    std::vector<int64_t> buckets;
    std::vector<Spec> inputs, outputs;
    std::vector<std::string> conditioning;
    std::vector<CacheEntry> cache;
    std::vector<BlockRange> ranges;           // by the digits of plans
    std::vector<int64_t> latent_shape;        // of one image, as the transformer takes it
    int64_t size_height = 0, size_width = 0;  // of the picture
    int64_t channels = 0, out_channels = 0, height = 0, width = 0, patch = 0, frames = 1, patch_frames = 1;
    bool packed = false, video = false;
    std::vector<Preset> presets;
    std::vector<TextRun> text;
    std::vector<std::string> anchors;
    bool scored_by_clip = false;                    // words, where the bundle has a CLIP encoder; otherwise lexically
    std::map<std::string, std::string> tokenizers;  // name to its portable file
    Cleaning cleaning = Cleaning::none;
    std::vector<Encoder> encoders;
    std::optional<Program> conditioned;  // encoders' outputs to the engine's conditioning
    std::optional<Vae> vae;
    std::optional<Scheduler> scheduler;                                 // with components alone
    int64_t picture_frames = 0, picture_height = 0, picture_width = 0;  // 0 without a VAE

    int64_t token_width() const { return patch_frames * patch * patch * out_channels; }
};

// The manifest of a bundle's folder, which is named in failures.
Manifest read_manifest(const std::string& folder);

}  // namespace accelaes
