// Resizing of 8-bit pixels by weighed sums along one axis and then the other, each pass rounding to 8 bits, as is done in
// Pillow 13's src/libImaging/Resample.c. Knows pixels of four bytes and tables of weights. Does not know filters.
#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

constexpr int kWeightBits = 22;  // after the point
constexpr uint32_t kHalf = 1u << (kWeightBits - 1);
constexpr int kPixel = 4;  // bytes

// Where each output place of an axis begins to look, [size], and the weights of what it finds there, [size, taps].
struct Axis {
  int64_t size, taps;  // no taps: the axis keeps its size
  const int32_t* starts;
  const int32_t* weights;
};

struct Picture {
  const uint8_t* pixels;
  int64_t width, height;

  const uint8_t* row(int64_t y) const { return pixels + y * width * kPixel; }
};

// An axis with its weights in quads. Those along rows are aligned: they begin at places that four divides, so that
// pixels are brought into quads once for all outputs that see them. Those down columns begin where an output looks.
template <typename Sums>
struct Table {
  std::vector<int64_t> starts;
  std::vector<typename Sums::Weights> weights;
  int64_t quads;

  Table(const Axis& axis, bool aligned) : quads((axis.taps + (aligned ? 6 : 3)) / 4) {
    for (int64_t i = 0; axis.taps && i < axis.size; ++i) {
      const int64_t ahead = aligned ? axis.starts[i] % 4 : 0;
      starts.push_back(axis.starts[i] - ahead);
      for (int64_t quad = 0; quad < quads; ++quad) {
        int32_t four[4] = {};
        for (int64_t k = 0; k < 4; ++k) {
          const int64_t tap = 4 * quad + k - ahead;
          if (tap >= 0 && tap < axis.taps) four[k] = axis.weights[i * axis.taps + tap];
        }
        weights.emplace_back(four);
      }
    }
  }

  const typename Sums::Weights* row(int64_t i) const { return &weights[i * quads]; }
};

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Along rows, kLaneCount of them at a time.
template <typename Sums>
class Across {
 public:
  Across(const Axis& axis, int64_t width)
      : width_(width), size_(axis.size), table_(axis, true), quads_(width / 4 + 1 + table_.quads) {}

  // The outputs have room for pixels in fours. Memory is asked meanwhile for what lies so many bytes ahead: the next
  // rows, which one would otherwise wait for when there is nothing to compute.
  void run(const uint8_t* const (&rows)[kLaneCount], int64_t ahead, uint8_t* const (&out)[kLaneCount]) {
    const int64_t whole = width_ / 4;
    for (int64_t i = 0; i < whole; ++i) quads_[i] = turn(gather(rows, i * kLane));
    if (width_ % 4) quads_[whole] = turn(gather_few(rows, whole * kLane, width_ % 4 * kPixel));
    const int64_t step = 4 * kPixel * width_ / size_;
    for (int64_t x = 0, asked = 0; x < size_; x += 4) {
      for (; asked < x / 4 * step; asked += 64)
        for (int i = 0; i < kLaneCount; ++i) __builtin_prefetch(rows[i] + ahead + asked);
      Sums sums[4] = {Sums(kHalf), Sums(kHalf), Sums(kHalf), Sums(kHalf)};
      const Bytes* quads[4];
      const typename Sums::Weights* weights[4];
      for (int i = 0; i < 4; ++i) {
        const int64_t place = std::min(x + i, size_ - 1);
        quads[i] = &quads_[table_.starts[place] / 4];
        weights[i] = table_.row(place);
      }
      for (int64_t k = 0; k < table_.quads; ++k)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sums[i].add((Quads)quads[i][k], weights[i][k]);
      scatter(bytes_of(sums, kWeightBits), out, x * kPixel);
    }
  }

 private:
  int64_t width_, size_;
  Table<Sums> table_;
  std::vector<Bytes> quads_;  // of the rows at hand, and zeros behind them
};

// Down columns.
template <typename Sums>
class Down {
 public:
  explicit Down(const Axis& axis) : taps_(axis.taps), table_(axis, false), rows_(4 * table_.quads) {}

  int64_t taps() const { return taps_; }
  int64_t start(int64_t y) const { return table_.starts[y]; }

  // One output row of `size` bytes, a register at least, from the rows that `row(y)` gives.
  template <typename Row>
  void run(int64_t y, int64_t size, Row row, uint8_t* out) {
    for (size_t k = 0; k < rows_.size(); ++k) rows_[k] = row(start(y) + std::min<int64_t>(k, taps_ - 1));
    const auto* const weights = table_.row(y);
    for (int64_t i = 0; i < size; i += kRegister) {
      const int64_t at = std::min(i, size - kRegister);
      Sums sums[4] = {Sums(kHalf), Sums(kHalf), Sums(kHalf), Sums(kHalf)};
      for (int64_t k = 0; k < table_.quads; ++k) {
        const uint8_t* const* const four = &rows_[4 * k];
        const Bytes bytes[4] = {load_bytes(four[0] + at), load_bytes(four[1] + at), load_bytes(four[2] + at),
                                load_bytes(four[3] + at)};
        Quads quads[4];
        quads_of(bytes, quads);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sums[j].add(quads[j], weights[k]);
      }
      store_bytes(out + at, bytes_of(sums, kWeightBits));
    }
  }

 private:
  int64_t taps_;
  Table<Sums> table_;
  std::vector<const uint8_t*> rows_;
};

// Three of each pixel's four bytes.
static inline void pack_rgb(const uint8_t* pixels, int64_t width, uint8_t* out) {
  int64_t x = 0;
  for (; x + 4 <= width; x += 4) {
    Lane four;
    std::memcpy(&four, pixels + kPixel * x, sizeof four);
    four = __builtin_shufflevector(four, four, 0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
    std::memcpy(out + 3 * x, &four, 12);
  }
  for (; x < width; ++x) std::memcpy(out + 3 * x, pixels + kPixel * x, 3);
}

// Lines of pixels of our own, with room for pixels in fours. Their distance is no power of two, which would put all of
// them in the same few places of a cache.
class Lines {
 public:
  Lines(int64_t count, int64_t width)
      : count_(count), line_(round_up(width * kPixel, 64) + 64), bytes_(count * line_) {}

  uint8_t* operator[](int64_t y) { return &bytes_[y % count_ * line_]; }

 private:
  int64_t count_, line_;
  std::vector<uint8_t> bytes_;
};

// Rows first: lines keep what the next output row needs.
template <typename Sums>
void across_then_down(const Picture& picture, const Axis& across_axis, const Axis& down_axis, uint8_t* out) {
  Across<Sums> across(across_axis, picture.width);
  Down<Sums> down(down_axis);
  const int64_t width = across_axis.size;
  Lines lines(down.taps() + kLaneCount, width), done(1, width);
  int64_t made = 0;
  for (int64_t y = 0; y < down_axis.size; ++y) {
    for (made = std::max(made, down.start(y)); made < down.start(y) + down.taps(); made += kLaneCount) {
      const uint8_t* rows[kLaneCount];
      uint8_t* places[kLaneCount];
      for (int i = 0; i < kLaneCount; ++i) {
        const int64_t row = std::min(made + i, picture.height - 1);
        rows[i] = picture.row(row);
        places[i] = lines[row];
      }
      across.run(rows, kLaneCount * picture.width * kPixel, places);
    }
    down.run(y, width * kPixel, [&](int64_t row) { return lines[row]; }, done[0]);
    pack_rgb(done[0], width, out + y * width * 3);
  }
}

// Columns first, or one of the two alone, or neither.
template <typename Sums>
void down_then_across(const Picture& picture, const Axis& across_axis, const Axis& down_axis, uint8_t* out) {
  Across<Sums> across(across_axis, picture.width);
  Down<Sums> down(down_axis);
  const int64_t width = across_axis.size;
  Lines lines(kLaneCount, picture.width), done(kLaneCount, width);
  for (int64_t y = 0; y < down_axis.size; y += kLaneCount) {
    const uint8_t* rows[kLaneCount];
    uint8_t* places[kLaneCount];
    for (int i = 0; i < kLaneCount; ++i) {
      const int64_t row = std::min(y + i, down_axis.size - 1);
      rows[i] = down.taps() ? lines[i] : picture.row(row);
      places[i] = done[i];
      if (down.taps())
        down.run(row, picture.width * kPixel, [&](int64_t source) { return picture.row(source); }, lines[i]);
    }
    if (across_axis.taps) across.run(rows, 0, places);
    for (int64_t i = 0; i < std::min<int64_t>(kLaneCount, down_axis.size - y); ++i)
      pack_rgb(across_axis.taps ? places[i] : rows[i], width, out + (y + i) * width * 3);
  }
}

// Whether every window lies within the axis, and none begins before the one ahead of it.
static inline bool fits(const Axis& axis, int64_t size) {
  if (axis.taps == 0) return axis.size == size;
  int64_t last = 0;
  for (int64_t i = 0; i < axis.size; ++i) {
    if (axis.starts[i] < last || axis.starts[i] + axis.taps > size) return false;
    last = axis.starts[i];
  }
  return axis.size > 0 && axis.taps > 0;
}

template <typename Sums>
void resize_with(const Picture& picture, const Axis& across, const Axis& down, bool down_first, uint8_t* out) {
  if (across.taps && down.taps && !down_first) return across_then_down<Sums>(picture, across, down, out);
  down_then_across<Sums>(picture, across, down, out);
}

#if defined(__AVX512BW__)
// Flat, as only what has this target can take in what needs it.
__attribute__((target("avx512vnni"), flatten)) static void resize_with_digits(const Picture& picture,
                                                                             const Axis& across, const Axis& down,
                                                                             bool down_first, uint8_t* out) {
  resize_with<Digits>(picture, across, down, down_first, out);
}
#endif

// Pixels [height, width, 4] to [down.size, across.size, 3]. False where that cannot be: the picture is narrower than a
// register, or the axes do not belong to it.
static inline bool resize(const Picture& picture, const Axis& across, const Axis& down, bool down_first, uint8_t* out) {
  if (std::min(picture.width, across.size) * kPixel < kRegister || picture.height < 1) return false;
  if (!fits(across, picture.width) || !fits(down, picture.height)) return false;
#if defined(__AVX512BW__)
  if (__builtin_cpu_supports("avx512vnni")) {
    resize_with_digits(picture, across, down, down_first, out);
    return true;
  }
#endif
  resize_with<Halves>(picture, across, down, down_first, out);
  return true;
}
