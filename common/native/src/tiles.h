// Weights that are bfloat16, in two bytes each, for processors with tiles (Intel's AMX), which multiply bfloat16s many
// times as fast as floats.
//
// Nothing need be rounded for that. A float's 24 bits are those of three bfloat16s, and a bfloat16 times a bfloat16 is exact
// in float32: three products in tiles add up the same numbers as one of floats, in another order. Where inputs may be rounded
// to bfloat16, one product does. Only numbers, their pieces and sums that are smaller than any normal float32 count as
// zero. Each row is summed up for itself and in one order, whatever else is in its tile.
//
// Weights lie in strips of 16 columns, two of them in a panel, and a strip in steps of kDepthStep depths, each of them one
// tile. A tile's rows are two depths of all its columns: W[c][k] W[c][k+1] W[c+1][k] W[c+1][k+1] ... The last step is
// filled up with zeros.
#pragma once

#include <immintrin.h>

#include "linear.h"

constexpr int64_t kDepthStep = 32;    // depths of a tile
constexpr int64_t kStrip = 16;        // and of weights its columns
constexpr int64_t kTileRows = 16;     // most rows of inputs and outputs in a tile
constexpr int64_t kTileWords = 256;   // a tile's size, 1 KiB
constexpr int kExact = 3;             // bfloat16s in a float
constexpr int kRounded = 1;           // and in one that is rounded to them

static_assert(kPanel == 2 * kStrip, "a panel is two tiles wide");

// Floats in pieces, the smallest first: each is what is left of them by the larger ones, cut off to a bfloat16. A single
// piece is rounded to one.
template <int N>
static inline void split(Floats v, Floats (&pieces)[N]) {
  if constexpr (N == kRounded) {
    pieces[0] = rounded(v);
  } else {
    for (int piece = N - 1; piece >= 0; --piece) {
      pieces[piece] = upper_half(v);
      v -= pieces[piece];
    }
  }
}

static inline int64_t steps_of(int64_t depth) { return (depth + kDepthStep - 1) / kDepthStep; }

struct HalfWeights {
  const uint32_t* data;
  int64_t columns;
  int64_t depth;
  bool rounds;  // inputs

  const uint32_t* strip(int64_t index, int64_t step) const {
    return data + (index * steps_of(depth) + step) * kTileWords;
  }
};

// Where a weight stands among the 16-bit halves of words.
static inline int64_t place_in_tiles(int64_t column, int64_t k, int64_t depth) {
  const int64_t tile = column / kStrip * steps_of(depth) + k / kDepthStep;
  return tile * 2 * kTileWords + (k % kDepthStep / 2 * kStrip + column % kStrip) * 2 + k % 2;
}

// `pack` of linear.h for bfloat16.
static inline void pack_halves(const uint16_t* w, int64_t columns, int64_t depth, int64_t first, uint32_t* words) {
  uint16_t* halves = reinterpret_cast<uint16_t*>(words);
  each_weight(w, columns, depth,
              [&](int64_t c, int64_t k, uint16_t weight) { halves[place_in_tiles(first + c, k, depth)] = weight; });
}

// Packed floats of so many panels as the words of HalfWeights; false as soon as one of them is no bfloat16.
static inline bool halve(const float* packed, int64_t panels, int64_t depth, uint32_t* words) {
  for (int64_t panel = 0; panel < panels; ++panel, packed += depth * kPanel)
    for (int64_t k = 0; k < depth; k += 2)
      for (int64_t column = 0; column < kPanel; column += kWidth) {
        const Floats even = load(packed + k * kPanel + column);
        const Floats odd = k + 1 < depth ? load(packed + (k + 1) * kPanel + column) : Floats{};
        if (!are_halves(even, odd)) return false;
        const Unsigned both = reinterpret_cast<Unsigned>(even) >> 16 | reinterpret_cast<Unsigned>(odd);
        std::memcpy(words + place_in_tiles(panel * kPanel + column, k, depth) / 2, &both, sizeof both);
      }
  return true;
}

static inline void unpack(const HalfWeights& w, int64_t column, float* to) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(w.data);
  for (int64_t k = 0; k < w.depth; ++k) {
    const uint32_t bits = static_cast<uint32_t>(halves[place_in_tiles(column, k, w.depth)]) << 16;
    std::memcpy(to + k, &bits, sizeof bits);
  }
}

// Rows of inputs in tiles of `height` rows: of each tile its steps, of each step N pieces, the smallest first.
template <int N>
struct TileInputs {
  int64_t height, steps;
  Buffer<uint16_t> halves;

  // Room for a block of rows, in one tile or an even number of tiles that are as high as each other; rows that fill up the
  // last are zero.
  void lay_out(int64_t rows, int64_t depth) {
    const int64_t tiles = rows > kTileRows ? (rows + 2 * kTileRows - 1) / (2 * kTileRows) * 2 : 1;
    height = (rows + tiles - 1) / tiles;
    steps = steps_of(depth);
    const int64_t size = tiles * steps * step_size();
    grow(halves, size);
    for (int64_t row = rows; row < tiles * height; ++row)
      for (int64_t piece = 0; piece < steps * N; ++piece)
        std::memset(place(row) + piece * piece_size(), 0, kDepthStep * sizeof(uint16_t));
  }

  void put(int64_t row, const float* x, int64_t depth) {
    uint16_t* to = place(row);
    for (int64_t k = 0; k < depth; k += kDepthStep, to += step_size()) {
      float rest[kDepthStep] = {};
      const float* from = x + k;
      if (k + kDepthStep > depth) from = static_cast<float*>(std::memcpy(rest, from, (depth - k) * sizeof(float)));
      Floats low[N], high[N];
      split(load(from), low);
      split(load(from + kWidth), high);
      for (int piece = 0; piece < N; ++piece) store_upper_halves(to + piece * piece_size(), low[piece], high[piece]);
    }
  }

  const uint16_t* tile(int64_t index, int64_t step) const { return halves.data() + (index * steps + step) * step_size(); }
  int64_t piece_size() const { return height * kDepthStep; }
  int64_t step_size() const { return N * piece_size(); }

 private:
  uint16_t* place(int64_t row) {
    return halves.data() + row / height * steps * step_size() + row % height * kDepthStep;
  }
};
