// Weights that are bfloat16, in two bytes each, for processors with tiles (Intel's AMX), which multiply bfloat16s many
// times as fast as floats.
//
// Nothing is rounded for that. A float's 24 bits are those of three bfloat16s, and a bfloat16 times a bfloat16 is exact in
// float32: three products in tiles add up the same numbers as one of floats, in another order. Only numbers and sums that
// are smaller than any normal float32 count as zero. Each row is summed up for itself and in one order, whatever else is in
// its tile.
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
constexpr int64_t kPieces = 3;        // bfloat16s in a float

static_assert(kPanel == 2 * kStrip, "a panel is two tiles wide");

// Floats in pieces, the smallest first: each is what is left of them by the larger ones, cut off to a bfloat16.
static inline void split(Floats v, Floats (&pieces)[kPieces]) {
  for (int64_t piece = kPieces - 1; piece >= 0; --piece) {
    pieces[piece] = upper_half(v);
    v -= pieces[piece];
  }
}

static inline int64_t steps_of(int64_t depth) { return (depth + kDepthStep - 1) / kDepthStep; }

struct HalfWeights {
  const uint32_t* data;
  int64_t columns;
  int64_t depth;

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

// Rows of inputs in tiles of `height` rows: of each tile its steps, of each step the three pieces, the smallest first.
struct TileInputs {
  int64_t height, steps;
  std::vector<uint16_t> halves;

  // Room for a block of rows, in tiles that are as high as each other; rows that fill up the last are zero.
  void lay_out(int64_t rows, int64_t depth) {
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    height = (rows + tiles - 1) / tiles;
    steps = steps_of(depth);
    const int64_t size = tiles * steps * step_size();
    if (static_cast<int64_t>(halves.size()) < size) halves.resize(size);
    for (int64_t row = rows; row < tiles * height; ++row)
      for (int64_t piece = 0; piece < steps * kPieces; ++piece)
        std::memset(place(row) + piece * piece_size(), 0, kDepthStep * sizeof(uint16_t));
  }

  void put(int64_t row, const float* x, int64_t depth) {
    uint16_t* to = place(row);
    for (int64_t k = 0; k < depth; k += kDepthStep, to += step_size()) {
      float rest[kDepthStep] = {};
      const float* from = x + k;
      if (k + kDepthStep > depth) from = static_cast<float*>(std::memcpy(rest, from, (depth - k) * sizeof(float)));
      Floats low[kPieces], high[kPieces];
      split(load(from), low);
      split(load(from + kWidth), high);
      for (int64_t piece = 0; piece < kPieces; ++piece)
        store_upper_halves(to + piece * piece_size(), low[piece], high[piece]);
    }
  }

  const uint16_t* tile(int64_t index, int64_t step) const { return halves.data() + (index * steps + step) * step_size(); }
  int64_t piece_size() const { return height * kDepthStep; }
  int64_t step_size() const { return kPieces * piece_size(); }

 private:
  uint16_t* place(int64_t row) {
    return halves.data() + row / height * steps * step_size() + row % height * kDepthStep;
  }
};

// The three pieces of inputs times a tile of weights, added to a tile of sums. A macro, as tiles have no names but numbers
// that are written out.
#define DIPTYCH_ADD(sums, weights)  \
  do {                              \
    _tile_loadd(7, weights, 64);    \
    _tile_dpbf16ps(sums, 4, 7);     \
    _tile_dpbf16ps(sums, 5, 7);     \
    _tile_dpbf16ps(sums, 6, 7);     \
  } while (false)

// The processor's tiles while a thread computes: four of sums and three of inputs, each `height` rows, and one of weights.
class Tiles {
 public:
  explicit Tiles(int64_t height) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_of_row[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.bytes_of_row[tile] = 64;
      shapes.rows[tile] = static_cast<uint8_t>(tile < 7 ? height : kTileRows);
    }
    // GCC does not know that tiles read memory: what has been written is to be there.
    __asm__ volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }

  // One tile of inputs times P neighbouring panels over some steps: sums [height, P * kPanel], rows `stride` floats apart.
  template <int P>
  void multiply(const HalfWeights& w, int64_t panel, int64_t step, int64_t steps, const TileInputs& inputs, int64_t tile,
                float* sums, int64_t stride) const {
    const uint32_t* strips[2 * P];
    for (int i = 0; i < 2 * P; ++i) strips[i] = w.strip(2 * panel + i, step);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s) {
      const uint16_t* x = inputs.tile(tile, step + s);
      _tile_loadd(4, x, 64);
      _tile_loadd(5, x + inputs.piece_size(), 64);
      _tile_loadd(6, x + 2 * inputs.piece_size(), 64);
      const int64_t at = s * kTileWords;
      if (tile == 0)
        for (const uint32_t* strip : strips) ask_ahead(strip + at);
      DIPTYCH_ADD(0, strips[0] + at);
      DIPTYCH_ADD(1, strips[1] + at);
      if constexpr (P == 2) {
        DIPTYCH_ADD(2, strips[2] + at);
        DIPTYCH_ADD(3, strips[3] + at);
      }
    }
    const int64_t bytes = stride * sizeof(float);
    _tile_stored(0, sums, bytes);
    _tile_stored(1, sums + kStrip, bytes);
    if constexpr (P == 2) {
      _tile_stored(2, sums + 2 * kStrip, bytes);
      _tile_stored(3, sums + 3 * kStrip, bytes);
    }
  }

 private:
  // Weights come from memory for the first tile of inputs, and a tile of them asks for no more than it needs. Two steps
  // ahead into the nearest cache was the fastest on an Emerald Rapids: 15% over not asking.
  static void ask_ahead(const uint32_t* weights) {
    const char* p = reinterpret_cast<const char*>(weights + 2 * kTileWords);
    for (int64_t at = 0; at < static_cast<int64_t>(kTileWords * sizeof(uint32_t)); at += 64) __builtin_prefetch(p + at);
  }
};
