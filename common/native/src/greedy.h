// The choice of the likeliest token from logits.
// Knows rows of floats. Does not know which requests they are for.
#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.h"

struct Choice {
  int64_t token;   // the first of the largest
  bool finite;     // whether all logits are; where they are not, the rest says nothing
  bool near_tie;   // whether another one is within the margin of the largest
};

static inline Choice choose(const float* row, int64_t vocabulary, float margin) {
  Floats highest = fill(-INFINITY), bad{};
  int64_t i = 0;
  for (; i + kWidth <= vocabulary; i += kWidth) {
    const Floats x = load(row + i);
    highest = x > highest ? x : highest;
    bad += x - x;  // 0, or NaN where x is none or infinite
  }
  float top = largest(highest), wrong = sum(bad);
  for (; i < vocabulary; ++i) {
    top = row[i] > top ? row[i] : top;
    wrong += row[i] - row[i];
  }
  if (wrong != 0.0f) return {0, false, false};
  const float limit = top - margin;
  Ints count{}, first = Ints{} + INT32_MAX;
  for (i = 0; i + kWidth <= vocabulary; i += kWidth) {
    const Floats x = load(row + i);
    const Ints place = lanes() + static_cast<int32_t>(i);
    count -= x >= limit;
    first = ((x == top) & (place < first)) ? place : first;
  }
  int64_t close = 0, best = INT32_MAX;
  for (int lane = 0; lane < kWidth; ++lane) {
    close += count[lane];
    best = std::min<int64_t>(best, first[lane]);
  }
  for (; i < vocabulary; ++i) {
    close += row[i] >= limit;
    if (row[i] == top) best = std::min(best, i);
  }
  return {best, true, close > 1};
}
