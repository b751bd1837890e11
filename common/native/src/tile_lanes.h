// Attention in tiles, where it may round: queries, keys, weights and values are bfloat16, and what is summed up is float32.
//
// Knows one tile of keys and values at a time. Does not know who sees what of it. A lane is summed up for itself and in one
// order, whatever other lanes are beside it.
#pragma once

#include <algorithm>
#include <optional>

#include "attention_tile.h"
#include "tile_unit.h"

class TileLanes {
 public:
  static constexpr int kAtOnce = kTileRows;

  void begin(const Lanes<const float>& queries, int64_t lanes, const Heads& heads) {
    lanes_ = lanes, head_dim_ = heads.head_dim, steps_ = steps_of(head_dim_), width_ = padded(head_dim_);
    const int64_t rows = (lanes + kTileRows - 1) / kTileRows * kTileRows;
    queries_.assign(rows * steps_ * kDepthStep, 0);
    keys_.resize(kTile / kStrip * steps_ * kTileWords);
    values_.resize(kTile / kDepthStep * width_ / kStrip * kTileWords);
    scaled_.resize(head_dim_);
    seen_.begin(rows, width_);
    for (int64_t l = 0; l < lanes; ++l) put_query(queries[l], heads.scale * kLog2E, l);
    shapes_.emplace(std::min(lanes, kTileRows));
  }

  // The tile that is read next; of no tokens where there is none.
  template <typename Stored>
  void expect(const Stored* keys, const Stored* values, const int64_t* places, int64_t count) {
    ahead_.put(keys, values, places, count, head_dim_);
  }

  // A tile of so many tokens, whose rows lie at `places`.
  template <typename Stored>
  void read(const Stored* keys, const Stored* values, const int64_t* places, int64_t count) {
    for (int64_t token = 0; token < count; token += kStrip)
      for (int64_t step = 0; step < steps_; ++step) {
        if (step == 0)
          for (int64_t i = 0; i < kStrip; ++i) ahead_.ask_key(token + i);
        Floats words[kStrip];
        for (int64_t i = 0; i < kStrip; ++i)
          words[i] = pairs(keys + places[std::min(token + i, count - 1)] + step * kDepthStep, left(step * kDepthStep));
        transpose(words);
        float* to = keys_.data() + (token / kStrip * steps_ + step) * kTileWords;
        for (int64_t i = 0; i < kStrip; ++i) store(to + i * kStrip, words[i]);
      }
    // What is behind the last token is multiplied by zero, and so must be a number.
    for (int64_t token = 0; token < kTile; token += 2) {
      ahead_.ask_value(token);
      ahead_.ask_value(token + 1);
      for (int64_t d = 0; d < head_dim_; d += kStrip) {
        const Unsigned even = token < count ? halves(values + places[token] + d, left(d)) : Unsigned{};
        const Unsigned odd = token + 1 < count ? halves(values + places[token + 1] + d, left(d)) : Unsigned{};
        const int64_t tile = token / kDepthStep * (width_ / kStrip) + d / kStrip;
        const Unsigned both = even | odd << 16;
        std::memcpy(values_.data() + tile * kTileWords + token % kDepthStep / 2 * kStrip, &both, sizeof both);
      }
    }
  }

  // `taken` lanes from `lane` on over the tile's tokens, of which each sees those from `first` to `last`.
  void attend(int64_t lane, int taken, int64_t /* behind which values are zero */, const int64_t* first,
              const int64_t* last) {
    alignas(64) float weights[kTileRows * kTile];
    alignas(64) uint16_t rounded_weights[kTileRows * kTile];
    float corrections[kTileRows];
    score(lane, weights);
    weigh(taken, first, last, weights, seen_.state.data() + 2 * lane, corrections);
    float* sums = seen_.sums.data() + lane * width_;
    for (int i = 0; i < taken; ++i) {
      for (int64_t t = 0; t < kTile; t += kDepthStep)
        copy_numbers(weights + i * kTile + t, kDepthStep, rounded_weights + t * kTileRows + i * kDepthStep);
      for (int64_t d = 0; d < width_; d += kWidth) store(sums + i * width_ + d, load(sums + i * width_ + d) * corrections[i]);
    }
    mix(rounded_weights, sums);
  }

  void finish(const Lanes<float>& results) {
    shapes_.reset();
    seen_.finish(lanes_, width_, results);
  }

 private:
  int64_t left(int64_t d) const { return head_dim_ - d; }

  // A lane's query at its place in tiles; scaled, so that scores are.
  void put_query(const float* query, float scale, int64_t lane) {
    for (int64_t d = 0; d < head_dim_; ++d) scaled_[d] = query[d] * scale;
    uint16_t* to = queries_.data() + lane / kTileRows * steps_ * kTileRows * kDepthStep + lane % kTileRows * kDepthStep;
    for (int64_t step = 0; step < steps_; ++step)
      copy_numbers(scaled_.data() + step * kDepthStep, std::min(kDepthStep, left(step * kDepthStep)),
                   to + step * kTileRows * kDepthStep);
  }

  // Up to 32 numbers as bfloat16s, two in a word, zeros behind them.
  template <typename Stored>
  static Floats pairs(const Stored* from, int64_t count) {
    Floats words;
    if (sizeof(Stored) == 2 && count >= kDepthStep) {
      std::memcpy(&words, from, sizeof words);
      return words;
    }
    alignas(64) uint16_t some[kDepthStep] = {};
    copy_numbers(from, std::min(count, kDepthStep), some);
    std::memcpy(&words, some, sizeof words);
    return words;
  }

  // Up to 16 numbers as bfloat16s in the lower halves of words, zeros behind them.
  template <typename Stored>
  static Unsigned halves(const Stored* from, int64_t count) {
    if (sizeof(Stored) == 2 && count >= kWidth) {
      HalfVector some;
      std::memcpy(&some, from, sizeof some);
      return __builtin_convertvector(some, Unsigned);
    }
    const Floats floats = count >= kWidth ? load(from) : load_some(from, count);
    return reinterpret_cast<Unsigned>(rounded(floats)) >> 16;
  }

  // Scores [kTileRows, kTile] of the lanes from `lane` on.
  void score(int64_t lane, float* to) const {
    const uint16_t* queries = queries_.data() + lane * steps_ * kDepthStep;
    finish_writing();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t step = 0; step < steps_; ++step) {
      const float* keys = keys_.data() + step * kTileWords;
      _tile_loadd(4, queries + step * kTileRows * kDepthStep, 64);
      DIPTYCH_ADD_TILE(0, 4, keys);
      DIPTYCH_ADD_TILE(1, 4, keys + steps_ * kTileWords);
      DIPTYCH_ADD_TILE(2, 4, keys + 2 * steps_ * kTileWords);
      DIPTYCH_ADD_TILE(3, 4, keys + 3 * steps_ * kTileWords);
    }
    constexpr int64_t stride = kTile * sizeof(float);
    _tile_stored(0, to, stride);
    _tile_stored(1, to + kStrip, stride);
    _tile_stored(2, to + 2 * kStrip, stride);
    _tile_stored(3, to + 3 * kStrip, stride);
  }

  static void weigh(int taken, const int64_t* first, const int64_t* last, float* weights, float* state,
                    float* corrections) {
    bool all = true;
    for (int i = 0; i < taken; ++i) all = all && first[i] <= 0 && last[i] >= kTile;
    if (taken == kTileRows)
      return (all ? soften<kTileRows, true> : soften<kTileRows, false>)(first, last, weights, state, corrections);
    for (int i = 0; i < taken; ++i)
      (all ? soften<1, true> : soften<1, false>)(first + i, last + i, weights + i * kTile, state + 2 * i, corrections + i);
  }

  // sums [kTileRows, width] += weights . values.
  void mix(const uint16_t* weights, float* sums) const {
    const int64_t stride = width_ * sizeof(float), strips = width_ / kStrip;
    finish_writing();
    _tile_loadd(4, weights, 64);
    _tile_loadd(5, weights + kTileRows * kDepthStep, 64);
    for (int64_t strip = 0; strip < strips; ++strip, sums += kStrip) {
      const float* values = values_.data() + strip * kTileWords;
      _tile_loadd(0, sums, stride);
      DIPTYCH_ADD_TILE(0, 4, values);
      DIPTYCH_ADD_TILE(0, 5, values + strips * kTileWords);
      _tile_stored(0, sums, stride);
    }
  }

  int64_t lanes_, head_dim_, steps_, width_;
  std::optional<TileShapes> shapes_;
  Ahead ahead_;
  Buffer<uint16_t> queries_;
  Buffer<float> keys_, values_, scaled_;
  Seen seen_;
};
