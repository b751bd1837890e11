// Weights as Python hands them over, of any kind, and what is done with them.
// Knows how they are stored. Does not know which layer they belong to.
#pragma once

#include <cstring>

#if defined(DIPTYCH_TILES)
#include "tile_product.h"
#else
#include "halves.h"
#endif

struct Weights {
  const void* data;
  const float* scales;  // of weights of 8 bits
  int64_t columns, depth;
  int64_t bits;    // of each weight: 32, 16 or 8
  int64_t rounds;  // inputs of weights of 16 bits may be rounded to bfloat16
};

static inline FloatWeights floats_of(const Weights& w) {
  return {static_cast<const float*>(w.data), w.columns, w.depth};
}

static inline HalfWeights halves_of(const Weights& w) {
  return {static_cast<const uint32_t*>(w.data), w.columns, w.depth, w.rounds != 0};
}

static inline ByteWeights bytes_of(const Weights& w) {
  return {static_cast<const int8_t*>(w.data), w.scales, w.columns, w.depth};
}

// y [rows, columns] = x * W^T, or y += that; rows of x stand `stride` floats apart.
static inline void multiply(Pool& pool, const Weights& w, int64_t rows, const float* x, int64_t stride, float* y,
                            bool add) {
  if (w.bits == 8)
    linear(pool, bytes_of(w), rows, x, stride, y, w.columns, add);
  else if (w.bits == 16)
    linear(pool, halves_of(w), rows, x, stride, y, w.columns, add);
  else
    linear(pool, floats_of(w), rows, x, stride, y, w.columns, add);
}

// One column's weights [depth], of 32 or 16 bits.
static inline void take_column(const Weights& w, int64_t column, float* to) {
  if (w.bits == 16)
    unpack(halves_of(w), column, to);
  else
    unpack(floats_of(w), column, to);
}

// Rows of embeddings as they were stored: float32, or bfloat16, which is the upper half of one.
struct Embeddings {
  const void* rows;
  int64_t bits;

  void take(int64_t row, int64_t size, float* to) const {
    if (bits == 32) {
      std::memcpy(to, static_cast<const float*>(rows) + row * size, size * sizeof(float));
      return;
    }
    copy_numbers(static_cast<const uint16_t*>(rows) + row * size, size, to);
  }
};
