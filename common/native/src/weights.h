// Weights as Python hands them over, of either kind, and the product with them.
// Knows how they are stored. Does not know which layer they belong to.
#pragma once

#include <vector>

#include "linear.h"

struct Weights {
  const void* data;
  const float* scales;  // none for float32
  int64_t columns, depth;
};

// y [rows, columns] = x * W^T, or y += that; rows of x stand `stride` floats apart.
static inline void multiply(Pool& pool, const Weights& w, int64_t rows, const float* x, int64_t stride, float* y,
                            bool add) {
  if (w.scales)
    linear(pool, ByteWeights{static_cast<const int8_t*>(w.data), w.scales, w.columns, w.depth}, rows, x, stride, y,
           w.columns, add);
  else
    linear(pool, FloatWeights{static_cast<const float*>(w.data), w.columns, w.depth}, rows, x, stride, y, w.columns,
           add);
}

// Room for so many floats, which stays for the next time.
static inline float* grow(std::vector<float>& buffer, int64_t size) {
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}
