// Attention of new rows over keys and values that are read where they lie.
//
// Keys come in tiles of kTile tokens, counted from the sequence's first token, and every row keeps a running maximum
// and a running sum over its tiles (online softmax: Milakov and Gimelshein, arXiv 1805.02867). What a row sees is
// computed in an order that depends on its own position alone, so its result is the same bits in any batch and chunk.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention_tile.h"
#include "buffer.h"
#include "pool.h"

// Rows of one part of the work: enough lanes to be worth the reading of all keys, few enough for their sums to stay near.
static inline int64_t part_rows(int64_t group) { return std::max<int64_t>(1, 256 / group); }

// Keys and values of one sequence and key-value head, floats or bfloat16s: token t lies in block table[t / block_size].
template <typename Stored>
struct Tokens {
  const Stored *keys, *values;
  const int64_t* table;  // none where all tokens lie one after another
  int64_t block_size;
  int64_t stride;  // numbers from one place to the next

  // How far from the first place `count` tokens from `start` on lie, in numbers. Division is slow, so it is done once.
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

// One token's values as floats, zeros behind them up to whole vectors.
template <typename Stored>
static inline const float* copy_row(const Stored* values, int64_t head_dim, float* to) {
  copy_numbers(values, head_dim, to);
  std::fill(to + head_dim, to + padded(head_dim), 0.0f);
  return to;
}

// Working memory of one thread.
struct AttentionScratch {
  Buffer<float> keys, values, sums, state;
};

// New rows of one sequence against one key-value head. Rows [rows, heads, head_dim] stand `stride` floats apart; the
// first of them is at `position`, and there are `length` tokens.
template <typename Stored>
static void attend(const float* query, float* out, int64_t rows, int64_t stride, int64_t position, int64_t length,
                   const Tokens<Stored>& tokens, const Heads& heads, AttentionScratch& scratch) {
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
  const bool copies = !std::is_same_v<Stored, float> || width != head_dim || (lanes > 4 * kLanes && width <= 64);
  for (int64_t start = first_of(0) / kTile * kTile; start < end; start += kTile) {
    const int64_t count = std::min<int64_t>(kTile, end - start);
    const float* value_rows[kTile];
    int64_t places[kTile];
    tokens.places(start, count, places);
    transpose_keys(tokens.keys, places, count, head_dim, scratch.keys.data());
    for (int64_t t = 0; t < count; ++t) {
      const Stored* values = tokens.values + places[t];
      if (copies) value_rows[t] = copy_row(values, head_dim, scratch.values.data() + t * width);
      else if constexpr (std::is_same_v<Stored, float>) value_rows[t] = values;
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
      attend_lanes<kLanes>(static_cast<int>(taken), queries, k, value_rows, most, first, last, heads, state, sums);
    }
  }
  for (int64_t l = 0; l < lanes; ++l) {
    float* to = out + l / heads.group * stride + l % heads.group * head_dim;
    const float share = 1.0f / scratch.state[2 * l + 1];
    for (int64_t d = 0; d < head_dim; ++d) to[d] = scratch.sums[l * width + d] * share;
  }
}
