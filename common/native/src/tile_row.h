// One row times weights in tiles, by vectors: what tile_product.h computes, to the bit.
//
// A single row is over before its weights are there, and tiles read memory more slowly than vectors do. The order of sums
// is that of Intel's description of TDPBF16PS: in each step and for each piece of the inputs, the smallest first, the even
// depths from zero on, the odd ones from zero on, then both, then what was there before.
#pragma once

#include "tiles.h"

// Numbers below the smallest normal one are zero for tiles, and for vectors while this lives.
class FlushToZero {
 public:
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kResults | kInputs); }
  ~FlushToZero() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kResults = 0x8000, kInputs = 0x0040;
  unsigned before_;
};

// In one instruction by name: tiles do not flush a product before it is added, and compilers need not see to that.
static inline Floats add_product(float x, Floats weights, Floats sum) {
  return _mm512_fmadd_ps(fill(x), weights, sum);
}

// A row of inputs as floats, each piece for itself, the smallest first: [N, size], filled up to whole steps with zeros.
template <int N>
struct RowInputs {
  int64_t size;
  Buffer<float> floats;

  void put(const float* x, int64_t depth) {
    size = steps_of(depth) * kDepthStep;
    floats.assign(N * size, 0.0f);
    for (int64_t k = 0; k < depth; k += kWidth) {
      float rest[kWidth] = {};
      std::memcpy(rest, x + k, std::min<int64_t>(kWidth, depth - k) * sizeof(float));
      Floats pieces[N];
      split(load(rest), pieces);
      for (int piece = 0; piece < N; ++piece) store(floats.data() + piece * size + k, pieces[piece]);
    }
  }
};

// A row times T strips, of which each starts at its place, over some steps: sums [T * kStrip].
template <int T, int N>
static inline void multiply_row(const uint32_t* const (&strips)[T], int64_t step, int64_t steps,
                                const RowInputs<N>& inputs, float* sums) {
  const FlushToZero flush;
  Floats total[T] = {};
  const float* x = inputs.floats.data() + step * kDepthStep;
  for (int64_t s = 0; s < steps; ++s) {
    Floats even[N][T] = {}, odd[N][T] = {};
#pragma GCC unroll 2
    for (int64_t pair = 0; pair < kDepthStep / 2; ++pair, x += 2) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const float* words = reinterpret_cast<const float*>(strips[t] + s * kTileWords + pair * kStrip);
        __builtin_prefetch(words + 2 * kTileWords);
        const Floats first = lower_half(load(words)), second = upper_half(load(words));
#pragma GCC unroll 4
        for (int piece = 0; piece < N; ++piece) {
          even[piece][t] = add_product(x[piece * inputs.size], first, even[piece][t]);
          odd[piece][t] = add_product(x[piece * inputs.size + 1], second, odd[piece][t]);
        }
      }
    }
#pragma GCC unroll 4
    for (int piece = 0; piece < N; ++piece)
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) total[t] += even[piece][t] + odd[piece][t];
  }
  for (int t = 0; t < T; ++t) store(sums + t * kStrip, total[t]);
}
