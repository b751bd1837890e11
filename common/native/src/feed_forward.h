// Norm and feed-forward of a block of rows, which decoder and encoder have alike.
// Knows packed weights and rows. Does not know which layer they are of.
#pragma once

#include "adapters.h"
#include "rows.h"
#include "weights.h"

// Calls function(pool, first, count) for block after block of rows, equal ones: few enough that what one product puts out is
// still in the cache when the next one takes it in. A product passes over its weights once for so many rows anyway.
//
// Where there are blocks for all threads, each thread takes whole ones and computes them alone: what it reads it has written.
// Else all of them share out each product.
template <typename Function>
static inline void each_block(Pool& pool, int64_t rows, const Function& function) {
  static Pool alone(1);  // calls functions itself, so that several threads may use it
  const int64_t threads = pool.threads(), least = kRowBlock / 2;
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock, wanted = (blocks + threads - 1) / threads * threads;
  const bool apart = threads > 1 && rows >= wanted * least;
  const int64_t count = apart ? wanted : blocks;
  const auto block = [&](Pool& with, int64_t b) {
    function(with, rows * b / count, rows * (b + 1) / count - rows * b / count);
  };
  if (apart)
    pool.run(count, [&](int64_t b) { block(alone, b); });
  else
    for (int64_t b = 0; b < count; ++b) block(pool, b);
}

// The rows' norm, until the same thread's next call.
static const float* normed(Pool& pool, const float* weight, float eps, int64_t size, int64_t rows, const float* x) {
  static thread_local Buffer<float> buffer;
  float* to = grow(buffer, rows * size);
  each_row(pool, rows, [&](int64_t r) { rms_norm(x + r * size, weight, eps, size, to + r * size); });
  return to;
}

// x [rows, hidden] += down(silu(gate) * up) of its norm, the products with what adapters add to them.
static void feed_forward(Pool& pool, const float* norm, float eps, const Weights& gate_up, const Weights& down,
                         int64_t rows, float* x, const Changes& changes = {}) {
  static thread_local Buffer<float> wide_buffer, narrow_buffer;
  const int64_t hidden = gate_up.depth, size = down.depth;
  float* wide = grow(wide_buffer, rows * 2 * size);
  float* narrow = grow(narrow_buffer, rows * size);
  const float* inputs = normed(pool, norm, eps, hidden, rows, x);
  multiply(pool, gate_up, rows, inputs, hidden, wide, false);
  changes.add(pool, &AdapterLayer::gate_up, rows, inputs, hidden, wide);
  each_row(pool, rows, [&](int64_t r) { gated(wide + r * 2 * size, size, narrow + r * size); });
  multiply(pool, down, rows, narrow, size, x, true);
  changes.add(pool, &AdapterLayer::down, rows, narrow, size, x);
}
