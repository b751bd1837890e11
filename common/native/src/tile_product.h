// Products of rows with weights in tiles: y = x * W^T, or added to y. What linear.h does with vectors.
#pragma once

#include "rows.h"
#include "tile_row.h"
#include "tile_unit.h"

// Sums [rows, width] of the columns from `first` on to their places in y, where there are such columns.
static inline void take_sums(const float* sums, int64_t rows, int64_t width, int64_t first, int64_t columns, float* y,
                             int64_t y_stride, bool add) {
  const int64_t count = std::min(width, columns - first);
  for (int64_t r = 0; r < rows; ++r, sums += width) {
    float* to = y + r * y_stride + first;
    if (add)
      for (int64_t c = 0; c < count; ++c) to[c] += sums[c];
    else
      std::memcpy(to, sums, count * sizeof(float));
  }
}

// P panels times all rows over some steps of depth, R tiles of them at once.
template <int P, int R, int N>
static void multiply_panels(const Tiles<R, N>& tiles, const HalfWeights& w, int64_t panel, int64_t step, int64_t steps,
                            const TileInputs<N>& inputs, int64_t rows, float* y, int64_t y_stride, bool add) {
  constexpr int64_t width = P * kPanel;
  alignas(64) float sums[R * kTileRows * width];
  const int64_t column = panel * kPanel, height = R * inputs.height;
  for (int64_t row = 0, tile = 0; row < rows; row += height, tile += R) {
    float* to = y + row * y_stride;
    if (!add && column + width <= w.columns && row + height <= rows) {
      tiles.template multiply<P>(w, panel, step, steps, inputs, tile, to + column, y_stride);
      continue;
    }
    tiles.template multiply<P>(w, panel, step, steps, inputs, tile, sums, width);
    take_sums(sums, std::min(height, rows - row), width, column, w.columns, to, y_stride, add);
  }
}

// The panels from `first` on, one part of a product, in blocks of depth whose weights stay in the cache for all rows. A
// single tile of inputs takes two panels beside one another, else two tiles below one another take one.
template <int R, int N>
static void panels(const HalfWeights& w, int64_t first, int64_t last, const TileInputs<N>& inputs, int64_t rows, float* y,
                   int64_t y_stride, bool add) {
  constexpr int64_t block = kDepth / kDepthStep, beside = 2 / R;
  const Tiles<R, N> tiles(inputs.height);
  for (int64_t step = 0; step < inputs.steps; step += block) {
    const int64_t steps = std::min(block, inputs.steps - step);
    const bool adds = add || step > 0;
    int64_t panel = first;
    for (; panel + beside <= last; panel += beside)
      multiply_panels<beside>(tiles, w, panel, step, steps, inputs, rows, y, y_stride, adds);
    if (panel < last) multiply_panels<1>(tiles, w, panel, step, steps, inputs, rows, y, y_stride, adds);
  }
}

// The same for one row, by vectors.
template <int N>
static void panels_of_row(const HalfWeights& w, int64_t first, int64_t last, const RowInputs<N>& inputs, float* y,
                          bool add) {
  constexpr int64_t block = kDepth / kDepthStep, beside = 4;
  const int64_t all = steps_of(w.depth), end = 2 * last;
  for (int64_t step = 0; step < all; step += block)
    for (int64_t strip = 2 * first; strip < end; strip += beside) {
      alignas(64) float sums[beside * kStrip];
      const uint32_t* strips[beside];
      // There is an even number of strips, so that the last ones may be only two: the last is read in place of others.
      for (int64_t i = 0; i < beside; ++i) strips[i] = w.strip(std::min(strip + i, end - 1), step);
      multiply_row(strips, step, std::min(block, all - step), inputs, sums);
      take_sums(sums, 1, beside * kStrip, strip * kStrip, std::min(w.columns, end * kStrip), y, 0, add || step > 0);
    }
}

template <int N>
static void linear_of_row(Pool& pool, const HalfWeights& w, const float* x, float* y, bool add) {
  static thread_local RowInputs<N> row;
  row.put(x, w.depth);
  const RowInputs<N>& shared = row;  // the pool's threads have others of that name
  each_part(pool, w, 1, [&](int64_t first, int64_t last) { panels_of_row(w, first, last, shared, y, add); });
}

template <int N>
static void linear_in_pieces(Pool& pool, const HalfWeights& w, int64_t rows, const float* x, int64_t x_stride, float* y,
                             int64_t y_stride, bool add) {
  if (rows == 1) return linear_of_row<N>(pool, w, x, y, add);
  static thread_local TileInputs<N> inputs;
  TileInputs<N>& shared = inputs;
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t row = rows * b / blocks, block = rows * (b + 1) / blocks - row;
    shared.lay_out(block, w.depth);
    each_row(pool, block, [&](int64_t r) { shared.put(r, x + (row + r) * x_stride, w.depth); });
    const auto part = block > kTileRows ? panels<2, N> : panels<1, N>;
    each_part(pool, w, block, [&](int64_t first, int64_t last) {
      part(w, first, last, shared, block, y + row * y_stride, y_stride, add);
    });
  }
}

// See `linear` of linear.h.
static void linear(Pool& pool, const HalfWeights& w, int64_t rows, const float* x, int64_t x_stride, float* y,
                   int64_t y_stride, bool add) {
  (w.rounds ? linear_in_pieces<kRounded> : linear_in_pieces<kExact>)(pool, w, rows, x, x_stride, y, y_stride, add);
}
