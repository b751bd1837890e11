// Products with weights that are packed once: y = x * W^T, or added to y.
//
// Weights W [columns, depth] lie in panels of kPanel columns, in each of them depth after depth, so that a product
// reads memory from front to back. The last panel is filled up with zeros.
//
//   panel 0: W[0..31][0] W[0..31][1] ... W[0..31][depth-1]   panel 1: W[32..63][0] ...
//
// Every output is summed up over the depth in one order, in blocks of kDepth, whatever the number of rows and of
// threads: a row's result is the same bits in any batch.
#pragma once

#include <algorithm>
#include <type_traits>

#include "buffer.h"
#include "pool.h"
#include "vectors.h"

constexpr int64_t kDepth = 512;       // depth that is summed up in registers
constexpr int64_t kRowBlock = kWidth == 16 ? 128 : 12 * kMaxRows;  // rows that stay in the cache while panels pass

static inline int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

struct FloatWeights {
  const float* data;
  int64_t columns;
  int64_t depth;

  typedef float Stored;
  static constexpr int64_t kRow = kPanel;  // what is stored of a panel for each depth
  const float* panel(int64_t index, int64_t k) const { return data + (index * depth + k) * kRow; }
  static void read(const float* p, Floats& low, Floats& high) {
    low = load(p);
    high = load(p + kWidth);
  }
  static float one(const float* p, int64_t column) { return p[column]; }
  Floats scale(Floats sum, int64_t, int) const { return sum; }
};

// One byte a weight, with one scale a column.
struct ByteWeights {
  const int8_t* data;
  const float* scales;  // one for each column, up to whole panels
  int64_t columns;
  int64_t depth;

  typedef int8_t Stored;
  static constexpr int64_t kRow = kPanel;
  const int8_t* panel(int64_t index, int64_t k) const { return data + (index * depth + k) * kRow; }
  static void read(const int8_t* p, Floats& low, Floats& high) {
    low = widen(p);
    high = widen(p + kWidth);
  }
  Floats scale(Floats sum, int64_t index, int half) const { return sum * load(scales + index * kPanel + half * kWidth); }
};

// What a tile asks memory for while it computes. The only tile of a panel asks for its own weights, as it waits for memory
// most; where several share a panel they take turns at asking for the next one.
enum class Ask { kNothing, kNear, kFar, kNext };

// What suits the processor where `rows` are one tile: Intel's gain by asking far ahead, into the second cache. AMD's with
// wide registers (seen on Zen 4) do better by themselves, until the products of many rows give them so long between two
// lines that they let go of the stream.
static inline Ask alone([[maybe_unused]] int64_t rows) {
#if defined(__AVX512F__)
  static const bool intel = __builtin_cpu_is("intel");
  return intel ? Ask::kFar : rows > 8 ? Ask::kNear : Ask::kNothing;
#else
  return Ask::kNear;
#endif
}

// `p` is where a panel's weights of one depth stand; `next` is for kNext.
template <Ask kAsk, int64_t kRow, typename Stored>
static inline void ask_for(const Stored* p, const char* next) {
  if constexpr (kAsk == Ask::kNext) __builtin_prefetch(next, 0, 2);
  constexpr int64_t line = 64, near = kWidth == 16 ? 4096 : 2048, far = 8192;
  for (int64_t at = 0; at < static_cast<int64_t>(kRow * sizeof(Stored)); at += line) {
    if constexpr (kAsk == Ask::kNear) __builtin_prefetch(reinterpret_cast<const char*>(p) + near + at);
    if constexpr (kAsk == Ask::kFar) __builtin_prefetch(reinterpret_cast<const char*>(p) + far + at, 0, 2);
  }
}

// Rows of x times P neighbouring panels over one block of depth; `next` is what kNext asks for, `step` bytes a depth.
template <int R, int P, Ask kAsk, typename Weights>
static inline void tile(const Weights& w, int64_t panel, int64_t k, int64_t depth, const float* x, int64_t x_stride,
                        float* y, int64_t y_stride, bool add, const char* next = nullptr, int64_t step = 0) {
  const typename Weights::Stored* from[P];
  for (int p = 0; p < P; ++p) from[p] = w.panel(panel + p, k);
  Floats sums[R][2 * P] = {};
  x += k;
  for (int64_t d = 0; d < depth; ++d) {
    Floats weights[2 * P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      const auto* at = from[p] + d * Weights::kRow;
      Weights::read(at, weights[2 * p], weights[2 * p + 1]);
      ask_for<kAsk, Weights::kRow>(at, next + d * step);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Floats value = fill(x[r * x_stride + d]);
#pragma GCC unroll 8
      for (int c = 0; c < 2 * P; ++c) sums[r][c] += value * weights[c];
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    const int64_t column = (panel + p) * kPanel;
    const bool whole = column + kPanel <= w.columns;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* to = y + r * y_stride + column;
      const Floats low = w.scale(sums[r][2 * p], panel + p, 0), high = w.scale(sums[r][2 * p + 1], panel + p, 1);
      if (whole) {
        store(to, add ? load(to) + low : low);
        store(to + kWidth, add ? load(to + kWidth) + high : high);
      } else {
        float rest[kPanel];
        store(rest, low);
        store(rest + kWidth, high);
        for (int64_t c = 0; c < w.columns - column; ++c) to[c] = add ? to[c] + rest[c] : rest[c];
      }
    }
  }
}

template <int R, Ask kAsk, typename Weights>
static void rows_tile(int rows, const Weights& w, int64_t panel, int64_t k, int64_t depth, const float* x,
                      int64_t x_stride, float* y, int64_t y_stride, bool add, const char* next, int64_t step) {
  if constexpr (R > 1) {
    if (rows < R)
      return rows_tile<R - 1, kAsk>(rows, w, panel, k, depth, x, x_stride, y, y_stride, add, next, step);
  }
  tile<R, 1, kAsk>(w, panel, k, depth, x, x_stride, y, y_stride, add, next, step);
}

// One panel times a block of rows over one block of depth, in tiles that differ by one row at most.
template <typename Weights>
static void column_of_tiles(const Weights& w, int64_t panel, int64_t k, int64_t depth, int64_t rows, const float* x,
                            int64_t x_stride, float* y, int64_t y_stride, bool add) {
  const int64_t tiles = (rows + kMaxRows - 1) / kMaxRows;
  if (tiles == 1) {
    const Ask ask = alone(rows);
    const auto only = ask == Ask::kFar    ? rows_tile<kMaxRows, Ask::kFar, Weights>
                      : ask == Ask::kNear ? rows_tile<kMaxRows, Ask::kNear, Weights>
                                          : rows_tile<kMaxRows, Ask::kNothing, Weights>;
    return only(static_cast<int>(rows), w, panel, k, depth, x, x_stride, y, y_stride, add, nullptr, 0);
  }
  const char* next = reinterpret_cast<const char*>(w.panel(panel + 1, k));
  const int64_t step = Weights::kRow * sizeof(typename Weights::Stored) / tiles;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t from = rows * t / tiles, to = rows * (t + 1) / tiles;
    rows_tile<kMaxRows, Ask::kNext>(static_cast<int>(to - from), w, panel, k, depth, x + from * x_stride, x_stride,
                                    y + from * y_stride, y_stride, add, next + t * depth * step, step);
  }
}

// The panels from `first` on, one part of a product; a single row takes several at once to hide what a sum waits for.
template <typename Weights>
static void panels(const Weights& w, int64_t first, int64_t last, int64_t rows, const float* x, int64_t x_stride,
                   float* y, int64_t y_stride, bool add) {
  // Floats come from memory slower than a row is summed up; more places at once would only be slower to read.
  constexpr bool floats = std::is_same_v<Weights, FloatWeights>;
  constexpr int kBeside = kWidth == 16 && floats ? 2 : 4;
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t row = rows * b / blocks, block = rows * (b + 1) / blocks - row;
    const float* from = x + row * x_stride;
    float* to = y + row * y_stride;
    for (int64_t k = 0; k < w.depth; k += kDepth) {
      const int64_t depth = std::min(kDepth, w.depth - k);
      const bool adds = add || k > 0;
      int64_t panel = first;
      if (block == 1) {
        const Ask ask = alone(1);
        const auto beside = ask == Ask::kFar    ? tile<1, kBeside, Ask::kFar, Weights>
                            : ask == Ask::kNear ? tile<1, kBeside, Ask::kNear, Weights>
                                                : tile<1, kBeside, Ask::kNothing, Weights>;
        for (; panel + kBeside <= last; panel += kBeside)
          beside(w, panel, k, depth, from, x_stride, to, y_stride, adds, nullptr, 0);
      }
      for (; panel < last; ++panel) column_of_tiles(w, panel, k, depth, block, from, x_stride, to, y_stride, adds);
    }
  }
}

// Calls function(first, last) for the panels of a product in parts, which the pool's threads share out.
template <typename Weights, typename Function>
static inline void each_part(Pool& pool, const Weights& w, int64_t rows, const Function& function) {
  const int64_t count = panels_of(w.columns);
  const bool small = rows * w.columns * w.depth < 1 << 18;  // a thread's help would come too late
  const int64_t parts = small ? 1 : std::min<int64_t>(4 * pool.threads(), (count + 3) / 4);
  const int64_t share = pool.threads() == 1 ? count : (count + parts - 1) / parts;
  pool.run((count + share - 1) / share,
           [&](int64_t part) { function(part * share, std::min(count, (part + 1) * share)); });
}

// y [rows, columns] = x [rows, depth] * W^T, or y += that.
template <typename Weights>
static void linear(Pool& pool, const Weights& w, int64_t rows, const float* x, int64_t x_stride, float* y,
                   int64_t y_stride, bool add) {
  each_part(pool, w, rows, [&](int64_t first, int64_t last) {
    panels(w, first, last, rows, x, x_stride, y, y_stride, add);
  });
}

// Calls put(column, k, weight) for all of w [columns, depth], in an order in which memory is read line by line and a panel
// is written within a few lines.
template <typename Stored, typename Put>
static inline void each_weight(const Stored* w, int64_t columns, int64_t depth, const Put& put) {
  constexpr int64_t lines = 16;
  for (int64_t first = 0; first < columns; first += kPanel)
    for (int64_t k = 0; k < depth; k += lines)
      for (int64_t c = first; c < std::min(columns, first + kPanel); ++c)
        for (int64_t i = k; i < std::min(depth, k + lines); ++i) put(c, i, w[c * depth + i]);
}

// Puts w [columns, depth] in the place of the columns from `first` on of packed weights that are zero elsewhere.
static inline void pack(const float* w, int64_t columns, int64_t depth, int64_t first, float* packed) {
  each_weight(w, columns, depth, [&](int64_t c, int64_t k, float weight) {
    const int64_t column = first + c;
    packed[(column / kPanel * depth + k) * kPanel + column % kPanel] = weight;
  });
}

// The weights of one column, which an embedding table calls a row.
template <typename Weights>
static inline void unpack(const Weights& w, int64_t column, float* to) {
  const auto* from = w.panel(column / kPanel, 0);
  for (int64_t k = 0; k < w.depth; ++k) to[k] = Weights::one(from + k * Weights::kRow, column % kPanel);
}
