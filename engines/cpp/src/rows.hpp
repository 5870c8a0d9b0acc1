// Moving tokens: which are chosen, and where their rows lie. No policy: only the rule that ties go to the lower index.
#pragma once

#include <cstdint>
#include <vector>

namespace accelaes {

// The n tokens of the largest score [N], ascending, and the others; ties to the lower index. NaN counts as largest.
void choose(const float* score, int64_t tokens, int64_t n, std::vector<int64_t>& order, int64_t* focus,
            int64_t* background);

// From tokens [rows, N, w] the rows at index [rows, n] to [rows, n, w], and back.
void gather(const float* tokens, int64_t rows, int64_t N, int64_t w, const int64_t* index, int64_t n, float* out);
void scatter(float* tokens, int64_t rows, int64_t N, int64_t w, const int64_t* index, int64_t n, const float* in);

}  // namespace accelaes
