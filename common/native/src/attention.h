// Attention of new rows over keys and values that are read where they lie.
//
// Keys come in tiles of kTile tokens, counted from the sequence's first token, and every row keeps a running maximum
// and a running sum over its tiles (online softmax: Milakov and Gimelshein, arXiv 1805.02867). What a row sees is
// computed in an order that depends on its own position alone, so its result is the same bits in any batch and chunk.
#pragma once

#include <algorithm>
#include <vector>

#include "pool.h"
#include "vectors.h"

constexpr int kTile = 64;       // tokens
constexpr float kLog2E = 1.44269504088896341f;  // scores are taken to the base of 2, which is what powers are computed to
constexpr int kLanes = kWidth == 16 ? 6 : 4;    // (row, head) pairs that share the reading of a tile
constexpr int kVectors = kWidth == 16 ? 4 : 2;  // of each of them, in registers

// Rows of one part of the work: enough lanes to be worth the reading of all keys, few enough for their sums to stay near.
static inline int64_t part_rows(int64_t group) { return std::max<int64_t>(1, 256 / group); }

// Keys and values of one sequence and key-value head: token t lies in block table[t / block_size].
struct Tokens {
  const float *keys, *values;
  const int64_t* table;  // none where all tokens lie one after another
  int64_t block_size;
  int64_t stride;  // floats from one place to the next

  // How far from the first place `count` tokens from `start` on lie, in floats. Division is slow, so it is done once.
  void places(int64_t start, int64_t count, int64_t* to) const {
    if (!table) {
      for (int64_t i = 0; i < count; ++i) to[i] = (start + i) * stride;
      return;
    }
    const int64_t* block = table + start / block_size;
    int64_t within = start % block_size;
    for (int64_t i = 0; i < count; ++i) {
      to[i] = (*block * block_size + within) * stride;
      if (++within == block_size) within = 0, ++block;
    }
  }
};

struct Heads {
  int64_t head_dim;
  int64_t group;   // query heads that share the key-value head
  float scale;
  bool causal;
  int64_t window;  // tokens that a row sees, itself included; 0 for all
};

// Working memory of one thread.
struct AttentionScratch {
  std::vector<float> keys, values, sums, state;
};

static inline int64_t padded(int64_t head_dim) { return (head_dim + kWidth - 1) / kWidth * kWidth; }

// A tile's keys with the dimension first: to [padded head_dim][kTile]. Behind `count` tokens stands anything, which nobody
// sees.
static inline void transpose_keys(const float* keys, const int64_t* places, int64_t count, int64_t head_dim,
                                  float* to) {
  for (int64_t token = 0; token < count; token += kWidth) {
    const float* rows[kWidth];
    for (int i = 0; i < kWidth; ++i) rows[i] = keys + places[std::min(token + i, count - 1)];
    for (int64_t d = 0; d < head_dim; d += kWidth) {
      Floats square[kWidth];
      if (d + kWidth <= head_dim) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) square[i] = load(rows[i] + d);
      } else {
        for (int i = 0; i < kWidth; ++i) {
          square[i] = Floats{};
          std::memcpy(&square[i], rows[i] + d, (head_dim - d) * sizeof(float));
        }
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(to + (d + i) * kTile + token, square[i]);
    }
  }
}

// scores [L][kTile] = scale * query . keys; the query's lanes stand `stride` floats apart.
template <int L>
static inline void scores(const float* const* query, const float* keys, int64_t head_dim, float scale, float* to) {
  for (int first = 0; first < kTile; first += kVectors * kWidth) {
    Floats sums[L][kVectors] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      Floats key[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) key[v] = load(keys + d * kTile + first + v * kWidth);
#pragma GCC unroll 6
      for (int l = 0; l < L; ++l) {
        const Floats q = fill(query[l][d]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[l][v] += q * key[v];
      }
    }
#pragma GCC unroll 6
    for (int l = 0; l < L; ++l)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) store(to + l * kTile + first + v * kWidth, sums[l][v] * scale);
  }
}

// sums [L][width] = corrections * sums + weights [L][kTile] . values, over `count` tokens.
template <int L, int V>
static inline void mix(const float* weights, const float* corrections, const float* const* values, int64_t count,
                       int64_t d, int64_t width, float* sums) {
  Floats total[L][V];
#pragma GCC unroll 6
  for (int l = 0; l < L; ++l)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total[l][v] = load(sums + l * width + d + v * kWidth) * corrections[l];
  for (int64_t t = 0; t < count; ++t) {
    Floats value[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) value[v] = load(values[t] + d + v * kWidth);
#pragma GCC unroll 6
    for (int l = 0; l < L; ++l)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) total[l][v] += weights[l * kTile + t] * value[v];
  }
#pragma GCC unroll 6
  for (int l = 0; l < L; ++l)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(sums + l * width + d + v * kWidth, total[l][v]);
}

// Weights [L][kTile] in place of scores, and what the sums so far have to be multiplied by. `first` and `last` are what each
// lane sees of the tile's tokens; kAll where that is all of them.
template <int L, bool kAll>
static inline void soften(const int64_t* first, const int64_t* last, float* weights, float* state, float* corrections) {
  const auto seen = [&](int l, int t) {
    const Ints token = lanes() + t;
    return (token >= (int32_t)first[l]) & (token < (int32_t)last[l]);
  };
  Floats rise = fill(0.0f);
#pragma GCC unroll 6
  for (int l = 0; l < L; ++l) {
    Floats best = fill(-1e30f);
    for (int t = 0; t < kTile; t += kWidth) {
      const Floats score = load(weights + l * kTile + t);
      best = larger(kAll ? score : (seen(l, t) ? score : fill(-1e30f)), best);
    }
    const float before = state[2 * l], highest = std::max(before, largest(best));
    state[2 * l] = highest;
    rise[l] = before - highest;
  }
  rise = power_of_two(rise);
#pragma GCC unroll 6
  for (int l = 0; l < L; ++l) {
    Floats total{};
    for (int t = 0; t < kTile; t += kWidth) {
      const Floats power = power_of_two(load(weights + l * kTile + t) - state[2 * l]);
      const Floats weight = kAll ? power : (seen(l, t) ? power : Floats{});
      store(weights + l * kTile + t, weight);
      total += weight;
    }
    corrections[l] = rise[l];
    state[2 * l + 1] = state[2 * l + 1] * corrections[l] + sum(total);
  }
}

// One tile for L lanes.
template <int L>
static void attend_tile(const float* const* query, const float* keys, const float* const* values, int64_t count,
                        const int64_t* first, const int64_t* last, const Heads& heads, float* state, float* sums) {
  const int64_t width = padded(heads.head_dim);
  float weights[L * kTile];
  float corrections[L];
  scores<L>(query, keys, heads.head_dim, heads.scale * kLog2E, weights);
  bool all = true;
  for (int l = 0; l < L; ++l) all = all && first[l] <= 0 && last[l] >= kTile;
  (all ? soften<L, true> : soften<L, false>)(first, last, weights, state, corrections);
  int64_t d = 0;
  for (constexpr int64_t step = kVectors * kWidth; d + step <= width; d += step)
    mix<L, kVectors>(weights, corrections, values, count, d, width, sums);
  for (; d < width; d += kWidth) mix<L, 1>(weights, corrections, values, count, d, width, sums);
}

// New rows of one sequence against one key-value head. Rows [rows, heads, head_dim] stand `stride` floats apart; the
// first of them is at `position`, and there are `length` tokens.
static void attend(const float* query, float* out, int64_t rows, int64_t stride, int64_t position, int64_t length,
                   const Tokens& tokens, const Heads& heads, AttentionScratch& scratch) {
  const int64_t head_dim = heads.head_dim, width = padded(head_dim), lanes = rows * heads.group;
  scratch.keys.resize(width * kTile);
  scratch.values.resize(width * kTile);
  scratch.sums.assign(lanes * width, 0.0f);
  scratch.state.resize(2 * lanes);
  for (int64_t l = 0; l < lanes; ++l) scratch.state[2 * l] = -1e30f, scratch.state[2 * l + 1] = 0.0f;
  const auto last_of = [&](int64_t l) { return heads.causal ? position + l / heads.group + 1 : length; };
  const auto first_of = [&](int64_t l) {
    return heads.window ? std::max<int64_t>(0, position + l / heads.group + 1 - heads.window) : 0;
  };
  const int64_t end = last_of(lanes - 1);
  // A vector must not reach behind a row; and rows far apart share few places of the first cache, so where many lanes read
  // them they stand together, unless they would fill it.
  const bool copies = width != head_dim || (lanes > 4 * kLanes && width <= 64);
  for (int64_t start = first_of(0) / kTile * kTile; start < end; start += kTile) {
    const int64_t count = std::min<int64_t>(kTile, end - start);
    const float* value_rows[kTile];
    int64_t places[kTile];
    tokens.places(start, count, places);
    transpose_keys(tokens.keys, places, count, head_dim, scratch.keys.data());
    for (int64_t t = 0; t < count; ++t) {
      value_rows[t] = tokens.values + places[t];
      if (copies) {
        float* copy = scratch.values.data() + t * width;
        std::memcpy(copy, value_rows[t], head_dim * sizeof(float));
        std::memset(copy + head_dim, 0, (width - head_dim) * sizeof(float));
        value_rows[t] = copy;
      }
    }
    for (int64_t l = 0; l < lanes; l += kLanes) {
      const int64_t taken = std::min<int64_t>(kLanes, lanes - l);
      const float* queries[kLanes];
      int64_t first[kLanes], last[kLanes], most = 0;
      for (int64_t i = 0; i < taken; ++i) {
        queries[i] = query + (l + i) / heads.group * stride + (l + i) % heads.group * head_dim;
        first[i] = first_of(l + i) - start;
        last[i] = last_of(l + i) - start;
        most = std::max(most, last[i]);
      }
      if (most <= 0) continue;  // these rows end before the tile
      most = std::min(most, count);
      float* state = scratch.state.data() + 2 * l;
      float* sums = scratch.sums.data() + l * width;
      const float* k = scratch.keys.data();
      switch (taken) {
        case 6: attend_tile<6>(queries, k, value_rows, most, first, last, heads, state, sums); break;
        case 5: attend_tile<5>(queries, k, value_rows, most, first, last, heads, state, sums); break;
        case 4: attend_tile<4>(queries, k, value_rows, most, first, last, heads, state, sums); break;
        case 3: attend_tile<3>(queries, k, value_rows, most, first, last, heads, state, sums); break;
        case 2: attend_tile<2>(queries, k, value_rows, most, first, last, heads, state, sums); break;
        default: attend_tile<1>(queries, k, value_rows, most, first, last, heads, state, sums);
      }
    }
  }
  for (int64_t l = 0; l < lanes; ++l) {
    float* to = out + l / heads.group * stride + l % heads.group * head_dim;
    const float share = 1.0f / scratch.state[2 * l + 1];
    for (int64_t d = 0; d < head_dim; ++d) to[d] = scratch.sums[l * width + d] * share;
  }
}
