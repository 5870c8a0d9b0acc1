// CUDA's mechanisms against the CPU's, on numbers by chance, bit for bit: device FOLDER SEED ROUNDS
//
// FOLDER is where libaccelaes_cuda.so is.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "device.hpp"
#include "failure.hpp"

namespace {

using accelaes::Carried;
using accelaes::Device;
using accelaes::DeviceFunctions;
using accelaes::Move;
using accelaes::Moved;
using accelaes::Patches;
using accelaes::Places;
using accelaes::Type;

// An array on both devices, of the same bytes at first.
class Both {
   public:
    Both(const Device& host, const Device& cuda, const std::string& bytes)
        : host_(host), cuda_(cuda), on_host_(host, bytes.size()), on_cuda_(cuda, bytes.size()) {
        host(&DeviceFunctions::write, on_host_.data(), bytes.data(), bytes.size());
        cuda(&DeviceFunctions::write, on_cuda_.data(), bytes.data(), bytes.size());
    }
    void* on(const Device& device) { return &device == &host_ ? on_host_.data() : on_cuda_.data(); }
    void require_same(const char* what) const {
        std::string a(on_host_.size(), 0), b(on_cuda_.size(), 0);
        host_.read(a.data(), on_host_.data(), a.size());
        cuda_.read(b.data(), on_cuda_.data(), b.size());
        if (a != b) throw accelaes::Failure(1, std::string(what) + " differs");
    }

   private:
    const Device &host_, &cuda_;
    accelaes::Buffer<char> on_host_, on_cuda_;
};

class Chance {
   public:
    Chance(const Device& host, const Device& cuda, unsigned long long seed) : host_(host), cuda_(cuda), source_(seed) {}

    int64_t between(int64_t least, int64_t most) {
        return least + static_cast<int64_t>(source_() % static_cast<unsigned long long>(most - least + 1));
    }
    bool maybe(int of) { return between(1, of) == 1; }
    Both bytes(size_t count) {
        std::string made(count, 0);
        for (char& byte : made) byte = static_cast<char>(source_());
        return Both(host_, cuda_, made);
    }
    template <typename Number>
    Both array(const std::vector<Number>& numbers) {
        return Both(host_, cuda_,
                    std::string(reinterpret_cast<const char*>(numbers.data()), sizeof(Number) * numbers.size()));
    }
    std::vector<float> numbers(size_t count) {
        std::normal_distribution<float> normal;
        std::vector<float> made(count);
        for (float& number : made) number = normal(source_);
        return made;
    }
    // Few different ones, and such as are compared unlike others.
    std::vector<float> scores(size_t count) {
        const float odd[] = {0.0f,
                             -0.0f,
                             std::numeric_limits<float>::infinity(),
                             -std::numeric_limits<float>::infinity(),
                             std::numeric_limits<float>::quiet_NaN(),
                             -std::numeric_limits<float>::quiet_NaN(),
                             std::numeric_limits<float>::denorm_min()};
        auto kinds = static_cast<float>(between(1, 40));
        auto made = numbers(count);
        bool even = maybe(3);
        for (float& score : made) {
            score = even ? 1.0f : maybe(3) ? score : std::floor(score * kinds) / kinds;
            if (maybe(12)) score = odd[between(0, 6)];
        }
        return made;
    }
    std::vector<int64_t> index(int64_t rows, int64_t tokens, int64_t count) {
        std::vector<int64_t> made, all(static_cast<size_t>(tokens));
        for (int64_t row = 0; row < rows; ++row) {
            for (size_t k = 0; k < all.size(); ++k) all[k] = static_cast<int64_t>(k);
            std::shuffle(all.begin(), all.end(), source_);
            made.insert(made.end(), all.begin(), all.begin() + count);
        }
        return made;
    }

   private:
    const Device &host_, &cuda_;
    std::mt19937_64 source_;
};

void choose(Chance& chance, const std::vector<const Device*>& devices) {
    int64_t images = chance.between(1, 3), tokens = chance.between(1, chance.maybe(4) ? 5000 : 200);
    int64_t n = chance.between(1, tokens), copies = chance.between(1, 2);
    Both score = chance.array(chance.scores(static_cast<size_t>(images * tokens)));
    Both focus = chance.bytes(static_cast<size_t>(8 * copies * images * n));
    Both background = chance.bytes(static_cast<size_t>(8 * copies * images * (tokens - n)));
    for (const auto* on : devices)
        (*on)(&DeviceFunctions::choose, static_cast<const float*>(score.on(*on)), images, tokens, n, copies,
              static_cast<int64_t*>(focus.on(*on)), static_cast<int64_t*>(background.on(*on)));
    focus.require_same("choose: focus");
    background.require_same("choose: background");
}

void rows(Chance& chance, const std::vector<const Device*>& devices) {
    int64_t B = chance.between(1, 3), tokens = chance.between(1, 60), count = chance.between(0, tokens);
    const Type types[] = {Type::f32, Type::f16, Type::bf16};
    std::vector<int64_t> index = chance.index(B, tokens, count);
    Both places = chance.array(index), marks = chance.bytes(static_cast<size_t>(4 * B * tokens));
    Both distance = chance.array(chance.numbers(static_cast<size_t>(B * tokens)));
    struct One {
        int64_t heads, width;
        Type type;
        Both full, earlier, fresh, read, carried;
    };
    std::vector<One> all;
    int64_t heads = chance.between(1, 3), width = chance.between(1, 20);
    Type type = types[chance.between(0, 2)];
    for (int64_t k = chance.between(1, chance.maybe(4) ? 100 : 3); k > 0; --k) {
        if (chance.maybe(4)) heads = chance.between(1, 3), width = chance.between(1, 20);
        auto full = static_cast<size_t>(B * heads * tokens * width),
             part = static_cast<size_t>(B * heads * count * width);
        auto halves = [&](size_t numbers) {
            std::vector<float> drawn = chance.numbers(numbers);
            std::string bytes(width_of(type) * numbers, 0);
            accelaes::host_functions()->convert(nullptr, bytes.data(), type, drawn.data(), Type::f32, numbers);
            return chance.array(std::vector<char>(bytes.begin(), bytes.end()));
        };
        all.push_back({heads, width, type, halves(full), halves(full), halves(part), halves(part), halves(part)});
    }
    bool keeps = chance.maybe(2);
    for (const auto* on : devices) {
        Places where = {B, tokens, count, static_cast<const int64_t*>(places.on(*on))};
        std::vector<Moved> read, written;
        std::vector<Carried> carried;
        for (auto& one : all) {
            size_t bytes = width_of(one.type) * static_cast<size_t>(one.width);
            read.push_back({one.full.on(*on), one.read.on(*on), nullptr, one.heads, bytes});
            void* kept = keeps ? one.earlier.on(*on) : nullptr;
            written.push_back({one.fresh.on(*on), one.full.on(*on), kept, one.heads, bytes});
            carried.push_back(
                {one.full.on(*on), one.earlier.on(*on), one.carried.on(*on), one.heads, one.width, one.type});
        }
        (*on)(&DeviceFunctions::mark, static_cast<float*>(marks.on(*on)), where);
        (*on)(&DeviceFunctions::gather, read.data(), read.size(), where);
        (*on)(&DeviceFunctions::carry, carried.data(), carried.size(), where,
              static_cast<const float*>(distance.on(*on)));
        (*on)(&DeviceFunctions::scatter, written.data(), written.size(), where);
    }
    marks.require_same("mark");
    for (const auto& one : all) {
        one.read.require_same("gather");
        one.carried.require_same("carry");
        one.full.require_same("scatter");
        one.earlier.require_same("scatter: kept");
    }
}

void convert(Chance& chance, const std::vector<const Device*>& devices) {
    for (Type type : {Type::f16, Type::bf16}) {
        std::vector<uint16_t> halves(65536);
        for (size_t k = 0; k < halves.size(); ++k) halves[k] = static_cast<uint16_t>(k);
        size_t count = halves.size();
        Both from = chance.array(halves), numbers = chance.bytes(4 * count);
        Both drawn = chance.bytes(4 * count), rounded = chance.bytes(2 * count);  // of any bits
        for (const auto* on : devices) {
            (*on)(&DeviceFunctions::convert, numbers.on(*on), Type::f32, from.on(*on), type, count);
            (*on)(&DeviceFunctions::convert, rounded.on(*on), type, drawn.on(*on), Type::f32, count);
        }
        numbers.require_same("convert to fp32");
        rounded.require_same("convert from fp32");
    }
}

void steps(Chance& chance, const std::vector<const Device*>& devices) {
    int64_t p = chance.between(1, 3), q = chance.between(1, 2);
    Patches patches = {chance.between(1, 2),
                       0,
                       chance.between(1, 5),
                       q * chance.between(1, 3),
                       p * chance.between(1, 6),
                       p * chance.between(1, 6),
                       p,
                       q};
    patches.tokens = patches.frames / q * (patches.height / p) * (patches.width / p);
    auto count = static_cast<size_t>(patches.images * patches.tokens * patches.token_width());
    Both tokens = chance.array(chance.numbers(count)), latents = chance.array(chance.numbers(count));
    Both sample = chance.array(chance.numbers(count)), earlier = chance.array(chance.numbers(count));
    Both prediction = chance.bytes(4 * count);
    auto drawn = chance.numbers(7);
    Move by = {static_cast<Move::Kind>(chance.between(0, 2)),
               static_cast<Move::Prediction>(chance.between(0, 2)),
               chance.maybe(2),
               drawn[0],
               drawn[1],
               drawn[2],
               drawn[3],
               drawn[4],
               chance.maybe(2) ? 0.0f : 0.5f,
               drawn[5],
               drawn[6]};
    bool remembers = by.kind == Move::Kind::dpm;
    for (const auto* on : devices) {
        auto at = [&](Both& array) { return static_cast<float*>(array.on(*on)); };
        (*on)(&DeviceFunctions::unpatchify, patches, static_cast<const float*>(at(tokens)), at(prediction));
        (*on)(&DeviceFunctions::move, by, static_cast<const float*>(at(prediction)), at(latents),
              remembers ? at(sample) : nullptr, static_cast<const float*>(remembers ? at(earlier) : nullptr), count);
        (*on)(&DeviceFunctions::fill, at(tokens), count / 2, 0.25f);
        (*on)(&DeviceFunctions::copy, at(earlier), at(latents), 4 * count);
    }
    prediction.require_same("unpatchify");
    latents.require_same("move");
    sample.require_same("move: sample");
    tokens.require_same("fill");
    earlier.require_same("copy");
}

}  // namespace

int main(int count, char** words) {
    if (count != 4) {
        std::fprintf(stderr, "error: give the folder of libaccelaes_cuda.so, a seed and a number of rounds\n");
        return 2;
    }
    unsigned long long seed = std::strtoull(words[2], nullptr, 10);
    try {
        Device host("cpu", nullptr, ""), cuda("cuda", nullptr, words[1]);
        const std::vector<const Device*> devices = {&host, &cuda};
        Chance all(host, cuda, seed);
        convert(all, devices);
        for (int round = 0; round < std::atoi(words[3]); ++round, ++seed) {
            Chance chance(host, cuda, seed);
            choose(chance, devices);
            rows(chance, devices);
            steps(chance, devices);
        }
    } catch (const accelaes::Failure& failure) {
        std::fprintf(stderr, "error: seed %llu: %s\n", seed, failure.sentence.c_str());
        return failure.code;
    }
    std::printf("the same, bit for bit\n");
    return 0;
}
