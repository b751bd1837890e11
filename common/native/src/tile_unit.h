// The processor's tiles, which multiply inputs and weights of tiles.h.
// Knows registers. Does not know products, or where they go.
#pragma once

#include "tiles.h"

// GCC does not know that tiles read memory: what has been written before this is there after it.
static inline void finish_writing() { __asm__ volatile("" ::: "memory"); }

// A tile of inputs times a tile of weights, added to a tile of sums. Macros, as tiles have no names but numbers that are
// written out.
#define DIPTYCH_ADD_TILE(sums, inputs, weights) \
  do {                                          \
    _tile_loadd(7, weights, 64);                \
    _tile_dpbf16ps(sums, inputs, 7);            \
  } while (false)

// All pieces of a tile of inputs times a tile of weights, added to a tile of sums.
#define DIPTYCH_ADD(sums, weights)      \
  do {                                  \
    DIPTYCH_ADD_TILE(sums, 4, weights); \
    if constexpr (N == kExact) {        \
      _tile_dpbf16ps(sums, 5, 7);       \
      _tile_dpbf16ps(sums, 6, 7);       \
    }                                   \
  } while (false)

// The shapes of tiles while this lives, on the thread that made it: those from `first_of_weights` on are of weights, the
// others of `height` rows.
class TileShapes {
 public:
  explicit TileShapes(int64_t height, int first_of_weights = 7) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_of_row[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.bytes_of_row[tile] = 64;
      shapes.rows[tile] = static_cast<uint8_t>(tile < first_of_weights ? height : kTileRows);
    }
    __asm__ volatile("" ::"r"(&shapes) : "memory");  // as `finish_writing`, of what has no other use
    _tile_loadconfig(&shapes);
  }
  ~TileShapes() { _tile_release(); }
  TileShapes(const TileShapes&) = delete;
};

// The tiles while a thread computes: 0 to 3 are of sums, the others of inputs, R of them below one another and each in N
// pieces, and of weights.
template <int R, int N>
class Tiles {
 public:
  explicit Tiles(int64_t height) : shapes_(height, R == 2 ? 6 : 7), height_(height) {}

  // R tiles of inputs from `tile` on times P neighbouring panels over some steps: sums [R * height, P * kPanel], rows
  // `stride` floats apart.
  template <int P>
  void multiply(const HalfWeights& w, int64_t panel, int64_t step, int64_t steps, const TileInputs<N>& inputs, int64_t tile,
                float* sums, int64_t stride) const {
    static_assert(R * P <= 2, "there are four tiles of sums");
    const uint32_t* strips[2 * P];
    for (int i = 0; i < 2 * P; ++i) strips[i] = w.strip(2 * panel + i, step);
    finish_writing();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t at = s * kTileWords;
      if (tile == 0)
        for (const uint32_t* strip : strips) ask_ahead(strip + at);
      const uint16_t* x = inputs.tile(tile, step + s);
      if constexpr (R == 2)
        add_two(x, inputs.tile(tile + 1, step + s), inputs.piece_size(), strips[0] + at, strips[1] + at);
      else
        add_one(x, inputs.piece_size(), strips, at);
    }
    put<P>(sums, stride);
  }

 private:
  // Inputs are read once for all strips of weights.
  template <int S>
  static void add_one(const uint16_t* x, int64_t piece_size, const uint32_t* const (&strips)[S], int64_t at) {
    _tile_loadd(4, x, 64);
    if constexpr (N == kExact) {
      _tile_loadd(5, x + piece_size, 64);
      _tile_loadd(6, x + 2 * piece_size, 64);
    }
    DIPTYCH_ADD(0, strips[0] + at);
    DIPTYCH_ADD(1, strips[1] + at);
    if constexpr (S == 4) {
      DIPTYCH_ADD(2, strips[2] + at);
      DIPTYCH_ADD(3, strips[3] + at);
    }
  }

  // Every tile that is read is multiplied twice. Weights stay in the nearest cache for the rows below, so that inputs are not
  // to drive them out.
  static void add_two(const uint16_t* x, const uint16_t* below, int64_t piece_size, const uint32_t* weights,
                      const uint32_t* beside) {
    _tile_loadd(6, weights, 64);
    _tile_loadd(7, beside, 64);
    for (int piece = 0; piece < N; ++piece) {
      _tile_stream_loadd(4, x + piece * piece_size, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_stream_loadd(5, below + piece * piece_size, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }

  template <int P>
  void put(float* sums, int64_t stride) const {
    const int64_t bytes = stride * sizeof(float);
    _tile_stored(0, sums, bytes);
    _tile_stored(1, sums + kStrip, bytes);
    if constexpr (R * P == 2) {
      float* others = R == 2 ? sums + height_ * stride : sums + kPanel;
      _tile_stored(2, others, bytes);
      _tile_stored(3, others + kStrip, bytes);
    }
  }

  // Weights come from memory for the first tile of inputs, and a tile of them asks for no more than it needs. Two steps
  // ahead into the nearest cache was the fastest on an Emerald Rapids: 15% over not asking.
  static void ask_ahead(const uint32_t* weights) {
    const char* p = reinterpret_cast<const char*>(weights + 2 * kTileWords);
    for (int64_t at = 0; at < static_cast<int64_t>(kTileWords * sizeof(uint32_t)); at += 64) __builtin_prefetch(p + at);
  }

  TileShapes shapes_;
  int64_t height_;
};
