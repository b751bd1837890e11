// Attention of a few queries over one tile of keys and values, by vectors.
// Knows registers and one tile. Does not know sequences, or where keys and values lie.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "heads.h"

constexpr int kLanes = kWidth == 16 ? 6 : 4;    // (row, head) pairs that share the reading of a tile
constexpr int kVectors = kWidth == 16 ? 4 : 2;  // of each of them, in registers

// What lanes have seen so far: of each its weighed values, [lanes, width], and its highest score and sum of weights.
struct Seen {
  Buffer<float> sums, state;

  void begin(int64_t lanes, int64_t width) {
    sums.assign(lanes * width, 0.0f);
    state.resize(2 * lanes);
    for (int64_t l = 0; l < lanes; ++l) state[2 * l] = -1e30f, state[2 * l + 1] = 0.0f;
  }

  void finish(int64_t lanes, int64_t width, const Lanes<float>& results) const {
    for (int64_t l = 0; l < lanes; ++l) {
      const float share = 1.0f / state[2 * l + 1];
      for (int64_t d = 0; d < results.head_dim; ++d) results[l][d] = sums[l * width + d] * share;
    }
  }
};

// Keys and values of the tile that is read next. Its rows are asked for one by one while this tile is computed, so that
// memory is never idle: the processor does not foresee them, and all at once would be waited for.
struct Ahead {
  const char *keys[kTile], *values[kTile];
  int64_t count = 0;  // of rows
  int64_t size = 0;   // of each, in bytes

  template <typename Stored>
  void put(const Stored* all_keys, const Stored* all_values, const int64_t* places, int64_t rows, int64_t head_dim) {
    count = rows, size = head_dim * static_cast<int64_t>(sizeof(Stored));
    for (int64_t i = 0; i < rows; ++i) {
      keys[i] = reinterpret_cast<const char*>(all_keys + places[i]);
      values[i] = reinterpret_cast<const char*>(all_values + places[i]);
    }
  }

  __attribute__((always_inline)) void ask_key(int64_t i) const { ask(keys, i); }
  __attribute__((always_inline)) void ask_value(int64_t i) const { ask(values, i); }

 private:
  // Inlined by order: a compiler takes what only asks for memory for something without effect, and leaves the call out.
  __attribute__((always_inline)) void ask(const char* const* rows, int64_t i) const {
    if (i < count)
      for (int64_t at = 0; at < size; at += 64) __builtin_prefetch(rows[i] + at, 0, 2);
  }
};

// A tile's keys with the dimension first: to [padded head_dim][kTile]. Behind `count` tokens stands anything, which nobody
// sees.
template <typename Stored>
static inline void transpose_keys(const Stored* keys, const int64_t* places, int64_t count, int64_t head_dim,
                                  float* to) {
  for (int64_t token = 0; token < count; token += kWidth) {
    const Stored* rows[kWidth];
    for (int i = 0; i < kWidth; ++i) rows[i] = keys + places[std::min(token + i, count - 1)];
    for (int64_t d = 0; d < head_dim; d += kWidth) {
      Floats square[kWidth];
      if (d + kWidth <= head_dim) {
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) square[i] = load(rows[i] + d);
      } else {
        for (int i = 0; i < kWidth; ++i) square[i] = load_some(rows[i] + d, head_dim - d);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(to + (d + i) * kTile + token, square[i]);
    }
  }
}

// scores [L][kTile] = scale * query . keys.
template <int L>
static inline void scores(const float* const* query, const float* keys, int64_t head_dim, float scale, const Ahead& ahead,
                          float* to) {
  for (int first = 0; first < kTile; first += kVectors * kWidth) {
    Floats sums[L][kVectors] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      if (first == 0) ahead.ask_key(d);
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
                       int64_t d, int64_t width, const Ahead& ahead, float* sums) {
  Floats total[L][V];
#pragma GCC unroll 6
  for (int l = 0; l < L; ++l)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total[l][v] = load(sums + l * width + d + v * kWidth) * corrections[l];
  for (int64_t t = 0; t < count; ++t) {
    if (d == 0) ahead.ask_value(t);
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
                        const int64_t* first, const int64_t* last, const Heads& heads, const Ahead& ahead, float* state,
                        float* sums) {
  const int64_t width = padded(heads.head_dim);
  float weights[L * kTile];
  float corrections[L];
  scores<L>(query, keys, heads.head_dim, heads.scale * kLog2E, ahead, weights);
  bool all = true;
  for (int l = 0; l < L; ++l) all = all && first[l] <= 0 && last[l] >= kTile;
  (all ? soften<L, true> : soften<L, false>)(first, last, weights, state, corrections);
  int64_t d = 0;
  for (constexpr int64_t step = kVectors * kWidth; d + step <= width; d += step)
    mix<L, kVectors>(weights, corrections, values, count, d, width, ahead, sums);
  for (; d < width; d += kWidth) mix<L, 1>(weights, corrections, values, count, d, width, ahead, sums);
}

template <int L>
static void attend_lanes(int lanes, const float* const* query, const float* keys, const float* const* values,
                         int64_t count, const int64_t* first, const int64_t* last, const Heads& heads,
                         const Ahead& ahead, float* state, float* sums) {
  if constexpr (L > 1) {
    if (lanes < L)
      return attend_lanes<L - 1>(lanes, query, keys, values, count, first, last, heads, ahead, state, sums);
  }
  attend_tile<L>(query, keys, values, count, first, last, heads, ahead, state, sums);
}
