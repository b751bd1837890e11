// Norm and feed-forward of a block of rows, which decoder and encoder have alike.
// Knows packed weights and rows. Does not know which layer they are of.
#pragma once

#include <vector>

#include "rows.h"
#include "weights.h"

// Calls function(first, count) for block after block of rows, equal ones: few enough that what one product puts out is still
// in the cache when the next one takes it in. A product passes over its weights once for so many rows anyway.
template <typename Function>
static inline void each_block(int64_t rows, const Function& function) {
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  for (int64_t b = 0; b < blocks; ++b) function(rows * b / blocks, rows * (b + 1) / blocks - rows * b / blocks);
}

class FeedForward {
 public:
  explicit FeedForward(Pool& pool) : pool_(pool) {}

  // The rows' norm, until the next call.
  const float* normed(const float* weight, float eps, int64_t size, int64_t rows, const float* x) {
    float* to = grow(normed_, rows * size);
    each_row(pool_, rows, [&](int64_t r) { rms_norm(x + r * size, weight, eps, size, to + r * size); });
    return to;
  }

  // x [rows, hidden] += down(silu(gate) * up) of its norm.
  void add(const float* norm, float eps, const Weights& gate_up, const Weights& down, int64_t rows, float* x) {
    const int64_t hidden = gate_up.depth, size = down.depth;
    float* wide = grow(wide_, rows * 2 * size);
    float* narrow = grow(narrow_, rows * size);
    multiply(pool_, gate_up, rows, normed(norm, eps, hidden, rows, x), hidden, wide, false);
    each_row(pool_, rows, [&](int64_t r) { gated(wide + r * 2 * size, size, narrow + r * size); });
    multiply(pool_, down, rows, narrow, size, x, true);
  }

 private:
  Pool& pool_;
  std::vector<float> normed_, wide_, narrow_;
};
