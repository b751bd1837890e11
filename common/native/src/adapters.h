// Low-rank changes of a layer's products (LoRA): what adapters add to their outputs, each to rows that ask for it.
// Knows packed weights and rows. Does not know whose rows they are.
#pragma once

#include "weights.h"

// y += up * (down * x). Without data where an adapter leaves the product alone.
struct LowRank {
  Weights down, up;
};

struct AdapterLayer {
  LowRank qkv, output, gate_up, down;
};

// y [rows, columns] += up * (down * x), rows of x being `stride` floats apart.
static void add_change(Pool& pool, const LowRank& change, int64_t rows, const float* x, int64_t stride, float* y) {
  static thread_local Buffer<float> buffer;
  float* narrow = grow(buffer, rows * change.down.columns);
  multiply(pool, change.down, rows, x, stride, narrow, false);
  multiply(pool, change.up, rows, narrow, change.down.columns, y, true);
}

// What is added to one layer's products for rows that follow one another. Rows of one adapter that do are multiplied
// together; a row's result is the same bits whatever is beside it, as in all products.
class Changes {
 public:
  Changes() = default;

  // The first adapter's layer, that of the next one `stride` further on; `asked` is each row's adapter, -1 for none, or
  // null where no row has one.
  Changes(const AdapterLayer* first, int64_t stride, const int64_t* asked)
      : first_(first), stride_(stride), asked_(asked) {}

  // To y [rows, columns of the product], of inputs x that stand `stride` floats apart.
  void add(Pool& pool, LowRank AdapterLayer::*product, int64_t rows, const float* x, int64_t stride, float* y) const {
    for (int64_t first = 0, last = 0; asked_ && first < rows; first = last) {
      while (last < rows && asked_[last] == asked_[first]) ++last;
      if (asked_[first] < 0) continue;
      const LowRank& change = first_[asked_[first] * stride_].*product;
      if (!change.down.data) continue;
      add_change(pool, change, last - first, x + first * stride, stride, y + first * change.up.columns);
    }
  }

 private:
  const AdapterLayer* first_ = nullptr;
  int64_t stride_ = 0;
  const int64_t* asked_ = nullptr;
};
