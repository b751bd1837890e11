// What is done with one row between products: norm, gate and rotation.
// Knows rows of floats. Does not know weights' layout or whose rows they are.
#pragma once

#include <algorithm>
#include <cmath>

#include "pool.h"
#include "vectors.h"

static inline void rms_norm(const float* x, const float* weight, float eps, int64_t size, float* y) {
  Floats total{};
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) total += load(x + i) * load(x + i);
  float squares = sum(total);
  for (; i < size; ++i) squares += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(squares / static_cast<float>(size) + eps);
  for (i = 0; i + kWidth <= size; i += kWidth) store(y + i, load(x + i) * factor * load(weight + i));
  for (; i < size; ++i) y[i] = x[i] * factor * weight[i];
}

// silu(gate) * up for one row [gate | up] of 2 * size.
static inline void gated(const float* row, int64_t size, float* y) {
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    const Floats gate = load(row + i);
    store(y + i, gate / (1.0f + exponential(-gate)) * load(row + size + i));
  }
  if (i < size) {
    Floats gate{}, up{};
    std::memcpy(&gate, row + i, (size - i) * sizeof(float));
    std::memcpy(&up, row + size + i, (size - i) * sizeof(float));
    const Floats product = gate / (1.0f + exponential(-gate)) * up;
    std::memcpy(y + i, &product, (size - i) * sizeof(float));
  }
}

// Turns `heads` heads of one row by the position's cosines and sines [head_dim / 2], pairs being half a head apart.
static inline void rotate(float* row, int64_t heads, int64_t head_dim, const float* cosines, const float* sines) {
  const int64_t half = head_dim / 2;
  for (int64_t h = 0; h < heads; ++h, row += head_dim)
    for (int64_t i = 0; i < half; ++i) {
      const float a = row[i], b = row[i + half];
      row[i] = a * cosines[i] - b * sines[i];
      row[i + half] = b * cosines[i] + a * sines[i];
    }
}

// Rows in parts for the pool: one part where they are few.
template <typename Function>
static inline void each_row(Pool& pool, int64_t rows, const Function& function) {
  const int64_t share = 16, parts = (rows + share - 1) / share;
  pool.run(parts, [&](int64_t part) {
    for (int64_t r = part * share; r < std::min(rows, (part + 1) * share); ++r) function(r);
  });
}
