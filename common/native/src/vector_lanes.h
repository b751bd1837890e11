// Attention by vectors, a few lanes at a time: everything is float32.
// Knows one tile of keys and values at a time. Does not know who sees what of it.
#pragma once

#include <type_traits>

#include "attention_tile.h"

class VectorLanes {
 public:
  static constexpr int kAtOnce = kLanes;

  void begin(const Lanes<const float>& queries, int64_t lanes, const Heads& heads) {
    queries_ = queries, lanes_ = lanes, heads_ = heads, width_ = padded(heads.head_dim);
    keys_.resize(width_ * kTile);
    values_.resize(width_ * kTile);
    seen_.begin(lanes, width_);
  }

  // The tile that is read next; of no tokens where there is none.
  template <typename Stored>
  void expect(const Stored* keys, const Stored* values, const int64_t* places, int64_t count) {
    ahead_.put(keys, values, places, count, heads_.head_dim);
  }

  // A tile of so many tokens, whose rows lie at `places`.
  template <typename Stored>
  void read(const Stored* keys, const Stored* values, const int64_t* places, int64_t count) {
    // A vector must not reach behind a row; and rows far apart share few places of the first cache, so where many lanes
    // read them they stand together, unless they would fill it.
    constexpr bool floats = std::is_same_v<Stored, float>;
    const bool copies = !floats || width_ != heads_.head_dim || (lanes_ > 4 * kLanes && width_ <= 64);
    transpose_keys(keys, places, count, heads_.head_dim, keys_.data());
    for (int64_t t = 0; t < count; ++t) {
      if (copies)
        value_rows_[t] = copy_row(values + places[t], values_.data() + t * width_);
      else if constexpr (floats)
        value_rows_[t] = values + places[t];
    }
  }

  // `taken` lanes from `lane` on over the tile's first `count` tokens, of which each sees those from `first` to `last`.
  void attend(int64_t lane, int taken, int64_t count, const int64_t* first, const int64_t* last) {
    const float* queries[kLanes];
    for (int i = 0; i < taken; ++i) queries[i] = queries_[lane + i];
    attend_lanes<kLanes>(taken, queries, keys_.data(), value_rows_, count, first, last, heads_, ahead_,
                         seen_.state.data() + 2 * lane, seen_.sums.data() + lane * width_);
    ahead_.count = 0;  // The first lanes have asked for it.
  }

  void finish(const Lanes<float>& results) const { seen_.finish(lanes_, width_, results); }

 private:
  // One token's values as floats, zeros behind them up to whole vectors.
  template <typename Stored>
  const float* copy_row(const Stored* values, float* to) const {
    copy_numbers(values, heads_.head_dim, to);
    std::fill(to + heads_.head_dim, to + width_, 0.0f);
    return to;
  }

  Lanes<const float> queries_;
  int64_t lanes_, width_;
  Heads heads_;
  const float* value_rows_[kTile];
  Ahead ahead_;
  Buffer<float> keys_, values_;
  Seen seen_;
};
