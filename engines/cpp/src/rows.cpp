#include "rows.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace accelaes {

void choose(const float* score, int64_t tokens, int64_t n, std::vector<int64_t>& order, int64_t* focus,
            int64_t* background) {
    order.resize(static_cast<size_t>(tokens));
    std::iota(order.begin(), order.end(), int64_t{0});
    auto before = [score](int64_t a, int64_t b) {
        bool a_none = std::isnan(score[a]), b_none = std::isnan(score[b]);
        if (a_none != b_none) return a_none;
        if (!a_none && score[a] != score[b]) return score[a] > score[b];
        return a < b;
    };
    if (n < tokens) std::nth_element(order.begin(), order.begin() + n, order.end(), before);
    std::sort(order.begin(), order.begin() + n);
    std::sort(order.begin() + n, order.end());
    std::copy(order.begin(), order.begin() + n, focus);
    std::copy(order.begin() + n, order.end(), background);
}

void gather(const float* tokens, int64_t rows, int64_t N, int64_t w, const int64_t* index, int64_t n, float* out) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t k = 0; k < n; ++k) {
            std::memcpy(out + (row * n + k) * w, tokens + (row * N + index[row * n + k]) * w,
                        sizeof(float) * static_cast<size_t>(w));
        }
    }
}

void scatter(float* tokens, int64_t rows, int64_t N, int64_t w, const int64_t* index, int64_t n, const float* in) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t k = 0; k < n; ++k) {
            std::memcpy(tokens + (row * N + index[row * n + k]) * w, in + (row * n + k) * w,
                        sizeof(float) * static_cast<size_t>(w));
        }
    }
}

}  // namespace accelaes
