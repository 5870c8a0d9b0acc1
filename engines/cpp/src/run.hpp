// One denoising run of a few images: a plan's steps, from engine calls and a preset's programs.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "accelaes.h"
#include "bundle.hpp"
#include "cache.hpp"
#include "components.hpp"
#include "programs.hpp"
#include "solver.hpp"
#include "words/words.hpp"

namespace accelaes {

inline double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The block range that a plan's symbol leaves out; -1: none.
inline int left_out_by(char symbol) { return symbol >= '0' && symbol <= '9' ? symbol - '0' : -1; }

// Where a tensor of the engine is, the type that it is of there, and how many numbers there are from there on.
struct Place {
    const void* data;
    Type type;
    size_t numbers;
};

// Of a tensor with so many rows, focus and text tokens.
size_t bytes_of(const Spec& spec, int64_t rows, int64_t n, int64_t text);

// What a run was asked for, with everything left out filled in; checked.
struct RunPlan {
    RunPlan(const Bundle& bundle, const accelaes_run_options& options);

    const Preset* preset;
    std::string symbols;
    int64_t images, rows;       // b and B, both halves of guidance included
    bool guided, two_calls;     // two engine calls a step, one for each half
    int64_t first_conditional;  // row where the conditional images begin
    int64_t gated;              // rows that a gate sees
    float scale;
    std::optional<Solver> solver;  // always there once it is made
    uint64_t seed;

    int64_t latent(const Manifest& manifest) const;  // numbers of one image's latents
    int64_t steps() const { return static_cast<int64_t>(symbols.size()); }
    int64_t focus_of(char symbol, const Manifest& manifest) const;
    // The most focus tokens, and background tokens, of a sparse step.
    int64_t most_focus(const Manifest& manifest) const;
    int64_t most_background(const Manifest& manifest) const;
    // Of all that is on the device, and of what is copied from one to be looked at.
    size_t bytes(const Manifest& manifest) const;
    // Block ranges that steps leave out.
    std::set<size_t> left_out() const;
    size_t host_bytes(const Manifest& manifest) const;

   private:
    void require_fitted() const;
};

class Run {
   public:
    Run(std::shared_ptr<const Bundle> bundle, RunPlan plan);

    void input(const accelaes_tensor* tensors, size_t count);
    // The same from prompts, of which each is of as many images.
    void prompt(const accelaes_prompt* prompts, size_t count, const accelaes_tensor* tensors, size_t given);
    // What the words of each image's prompt weigh; empty without a mask.
    const std::vector<std::vector<std::pair<std::string, double>>>& words() const { return words_; }
    // Carries out the next step and says what it `found`; whether there are more.
    bool next(accelaes_step* found);
    void cancel() { cancelled_ = true; }

    // On the host, as they are after the last step; valid until the next.
    const float* latents() const;
    size_t latent_numbers() const { return latents_.size(); }
    const int64_t* focus() const;
    int64_t focus_tokens() const { return shown_n_; }
    // The latents as they are now, as pictures [b, H, W, 3].
    void picture(uint8_t* pixels, size_t size) const;

   private:
    // Conditioning as the engine takes it, of all rows.
    struct Given {
        Type type;
        Buffer<char> data;
        bool by_row = true;
    };
    // Which tokens a bucket computes: the same for both halves of an image's rows.
    struct Sets {
        int64_t n = 0;
        Buffer<int64_t> focus, background;  // [B, n], [B, m]
        bool chosen = false;
    };
    // Numbers that programs read, each [1].
    enum class Scalar : size_t { now, target, step, scale, wanted, count };
    // What the engine makes in its own type, before it is fp32.
    struct Raw {
        Type type = Type::f32;
        Buffer<char> data;  // none where it is fp32 itself
    };

    // One step of the engine, for all rows.
    struct Call {
        const int64_t *focus, *background;  // [B, n], [B, m]
        int64_t n;
        float* predicted;   // [B, n, w]
        bool observed;      // the affinity is made
        bool keep;          // what is to be cached is fetched,
        bool whole;         // in a dense step straight into the full tensors
        int left_out = -1;  // block range
    };

    void take_all(const accelaes_tensor* tensors, size_t count, std::map<std::string, Text>& texts);
    void weigh(const PromptReader& reader, const std::vector<std::map<std::string, std::u32string>>& prompts);
    void set_weights(const float* of_images);
    void fill_in();
    void begin();
    bool masked() const { return plan_.preset->focus && plan_.preset->focus->mask_step >= 0; }
    void take(const accelaes_tensor& tensor);
    bool take_ids(const accelaes_tensor& tensor, std::map<std::string, Text>& texts) const;
    void encode(std::map<std::string, Text>& texts);
    void take_text(const std::string& name, int64_t tokens);
    void dense(int64_t i);
    void partial(int left_out);
    void sparse(int64_t i, Sets& sets);
    bool is_read(int64_t i, int dense_between) const;
    void choose_tokens(Sets& sets);
    void build_mask();
    void engine_call(const Call& call);
    std::unique_ptr<const Bound> bind(const Call& call, int half);
    Place input_of(const Spec& spec, const Call& call, int64_t first, int64_t m) const;
    Place of_rows(const Given& tensor, int64_t first) const;
    Place of_cache(const Cache::Entry& entry, const char* data, int64_t first, int64_t tokens) const;
    Place output_of(Raw& raw, float* numbers, int64_t first, int64_t of_row) const;
    void convert(const Raw& raw, float* numbers, int64_t count);
    void set(Scalar scalar, double number);
    float* scalar_at(Scalar scalar) { return scalars_.data() + static_cast<size_t>(scalar); }
    void double_latents();
    void guide_and_move(int64_t i);
    double extrapolated_to(int64_t i) const;
    double clock(int64_t i) const;

    std::shared_ptr<const Bundle> bundle_;
    const Manifest& manifest_;
    const Device& device_;
    RunPlan plan_;
    Programs programs_;
    Cache cache_;
    std::map<std::string, Given> given_;
    // The engine's calls by what they differ in: focus index, cache, whether the affinity is made and the cache kept,
    // block range left out, half of guidance.
    std::map<std::tuple<const int64_t*, const char*, bool, bool, int, int>, std::unique_ptr<const Bound>> calls_;
    std::map<std::string, Given> changes_;  // of block ranges at the last dense step, by their names
    std::map<char, Sets> sets_;
    Buffer<float> latents_, twice_, timestep_, weights_, affinity_rows_, affinity_, mask_, score_, distance_;
    Buffer<float> computed_, focus_rows_, background_rows_, running_, cached_, predicted_, guided_, scalars_,
        conditional_;  // 1 in rows of that half of guidance
    Buffer<int64_t> everything_, chosen_;
    Buffer<char> hidden_;  // the latents in the engine's type, where that isn't fp32
    Raw raw_focus_, raw_background_;
    Type hidden_type_ = Type::f32;
    mutable std::vector<float> shown_latents_;  // copies of the device's
    mutable std::vector<int64_t> shown_focus_;
    const Sets* shown_ = nullptr;  // of the last sparse step
    int64_t text_tokens_ = 0, shown_n_ = 0, at_ = 0;
    std::vector<std::vector<std::pair<std::string, double>>> words_;
    bool has_latents_ = false, weighed_ = false;
    const Sets* read_ = nullptr;  // whose background rows lie ready
    bool stale_ = true, masked_ = false, begun_ = false;
    double engine_seconds_ = 0;
    std::atomic<bool> cancelled_{false};
};

}  // namespace accelaes
