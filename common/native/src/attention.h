// Attention of new rows over keys and values that are read where they lie.
//
// Keys come in tiles of kTile tokens, counted from the sequence's first token, and every row keeps a running maximum
// and a running sum over its tiles (online softmax: Milakov and Gimelshein, arXiv 1805.02867). What a row sees is
// computed in an order that depends on its own position alone, so its result is the same bits in any batch and chunk.
#pragma once

#include <algorithm>

#include "pool.h"
#include "vector_lanes.h"

#if defined(DIPTYCH_TILES)
#include "tile_lanes.h"
#endif

// Rows of one part of the work: enough lanes to be worth the reading of all keys, few enough for their sums to stay near.
// Where they may round they may be computed in tiles, so much faster that reading weighs more.
static inline int64_t part_rows(const Heads& heads) {
  const int64_t lanes = heads.rounds ? 512 : 256;
  return std::max<int64_t>(1, lanes / heads.group);
}

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

// Working memory of one thread.
struct AttentionScratch {
  VectorLanes vectors;
#if defined(DIPTYCH_TILES)
  TileLanes tiles;
#endif
};

// In a function of this file alone: what is static inside of a template or a class is one for all libraries that a process
// has loaded, and those for other processors have another scratch.
static AttentionScratch& scratch_of_thread() {
  static thread_local AttentionScratch scratch;
  return scratch;
}

// New rows of one sequence against one key-value head. Rows [rows, heads, head_dim] stand `stride` floats apart; the
// first of them is at `position`, and there are `length` tokens. The result may take the queries' place.
template <typename Inside, typename Stored>
static void attend_by(Inside& inside, const float* query, float* out, int64_t rows, int64_t stride, int64_t position,
                      int64_t length, const Tokens<Stored>& tokens, const Heads& heads) {
  constexpr int at_once = Inside::kAtOnce;
  const int64_t lanes = rows * heads.group;
  inside.begin({query, stride, heads.group, heads.head_dim}, lanes, heads);
  const auto last_of = [&](int64_t l) { return heads.causal ? position + l / heads.group + 1 : length; };
  const auto first_of = [&](int64_t l) {
    return heads.window ? std::max<int64_t>(0, position + l / heads.group + 1 - heads.window) : 0;
  };
  const int64_t end = last_of(lanes - 1);
  const auto count_from = [&](int64_t start) { return std::clamp<int64_t>(end - start, 0, kTile); };
  int64_t some[kTile], others[kTile], *places = some, *ahead = others;
  int64_t start = first_of(0) / kTile * kTile;
  tokens.places(start, count_from(start), places);
  for (; start < end; start += kTile, std::swap(places, ahead)) {
    const int64_t count = count_from(start), expected = count_from(start + kTile);
    tokens.places(start + kTile, expected, ahead);
    inside.expect(tokens.keys, tokens.values, ahead, expected);
    inside.read(tokens.keys, tokens.values, places, count);
    for (int64_t l = 0; l < lanes; l += at_once) {
      const int64_t taken = std::min<int64_t>(at_once, lanes - l);
      int64_t first[at_once], last[at_once], most = 0;
      for (int64_t i = 0; i < taken; ++i) {
        first[i] = first_of(l + i) - start;
        last[i] = last_of(l + i) - start;
        most = std::max(most, last[i]);
      }
      // Those whose rows end before the tile see nothing of it.
      if (most > 0) inside.attend(l, static_cast<int>(taken), std::min(most, count), first, last);
    }
  }
  inside.finish({out, stride, heads.group, heads.head_dim});
}

template <typename Stored>
static void attend(const float* query, float* out, int64_t rows, int64_t stride, int64_t position, int64_t length,
                   const Tokens<Stored>& tokens, const Heads& heads) {
  AttentionScratch& scratch = scratch_of_thread();
#if defined(DIPTYCH_TILES)
  if (heads.rounds) return attend_by(scratch.tiles, query, out, rows, stride, position, length, tokens, heads);
#endif
  attend_by(scratch.vectors, query, out, rows, stride, position, length, tokens, heads);
}
