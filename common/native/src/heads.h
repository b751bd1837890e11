// What attention is asked for: heads of queries that share keys and values.
// Knows rows of queries. Does not know how anything is computed, or where keys and values lie.
#pragma once

#include "vectors.h"

constexpr int kTile = 64;                        // tokens that are read at once
constexpr float kLog2E = 1.44269504088896341f;  // scores are taken to the base of 2, which is what powers are computed to

struct Heads {
  int64_t head_dim;
  int64_t group;   // query heads that share the key-value head
  float scale;
  bool causal;
  int64_t window;  // tokens that a row sees, itself included; 0 for all
  bool rounds;     // queries, keys, weights and values may be rounded to bfloat16
};

// The lanes of rows that stand `stride` floats apart: of each row the heads that share a key-value head, one after another.
template <typename Float>
struct Lanes {
  Float* rows;
  int64_t stride, group, head_dim;

  Float* operator[](int64_t lane) const { return rows + lane / group * stride + lane % group * head_dim; }
};

static inline int64_t padded(int64_t head_dim) { return (head_dim + kWidth - 1) / kWidth * kWidth; }
