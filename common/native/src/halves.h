// Weights that are bfloat16, in two bytes each, for processors that multiply floats alone: see tiles.h for others.
#pragma once

#include "linear.h"

constexpr int64_t kDepthStep = 1;  // depths that packed weights are filled up to

// The upper halves of float32. A word holds one of each vector of a panel, the first's in its lower half, and one
// instruction makes either a float again: the same bits come out as with whole floats.
struct HalfWeights {
  const uint32_t* data;
  int64_t columns;
  int64_t depth;
  bool rounds;  // inputs may be; floats are as fast

  typedef uint32_t Stored;
  static constexpr int64_t kRow = kWidth;
  const uint32_t* panel(int64_t index, int64_t k) const { return data + (index * depth + k) * kRow; }
  static void read(const uint32_t* p, Floats& low, Floats& high) {
    Floats words;
    std::memcpy(&words, p, sizeof words);
    low = lower_half(words);
    high = upper_half(words);
  }
  static float one(const uint32_t* p, int64_t column) {
    const uint32_t bits = column < kWidth ? p[column] << 16 : p[column - kWidth] & 0xFFFF0000u;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  Floats scale(Floats sum, int64_t, int) const { return sum; }
};

// `pack` of linear.h for bfloat16.
static inline void pack_halves(const uint16_t* w, int64_t columns, int64_t depth, int64_t first, uint32_t* words) {
  each_weight(w, columns, depth, [&](int64_t c, int64_t k, uint32_t weight) {
    const int64_t column = first + c, place = column % kPanel;
    words[(column / kPanel * depth + k) * kWidth + place % kWidth] |= place < kWidth ? weight : weight << 16;
  });
}

// Packed floats of so many panels as the words of HalfWeights; false as soon as one of them is no bfloat16.
static inline bool halve(const float* packed, int64_t panels, int64_t depth, uint32_t* words) {
  for (int64_t r = 0; r < panels * depth; ++r, packed += kPanel, words += kWidth) {
    const Floats low = load(packed), high = load(packed + kWidth);
    if (!are_halves(low, high)) return false;
    const Unsigned both = reinterpret_cast<Unsigned>(low) >> 16 | reinterpret_cast<Unsigned>(high);
    std::memcpy(words, &both, sizeof both);
  }
  return true;
}
