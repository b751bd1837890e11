// The projector: rows of a picture's features to rows of embeddings, by two products with a GELU between them.
// Knows packed weights and rows. Does not know pictures or where their rows go.
#pragma once

#include "feed_forward.h"

struct ProjectorWeights {
  Weights first, second;         // without data where a model takes no pictures
  const float *bias_1, *bias_2;  // null where there is none
};

// x times the part of a normal distribution below x. What is above |x| is e**(-x*x/2) times a polynomial of
// 1 / (1 + c|x|), by Abramowitz and Stegun's 7.1.26, which errs by 0.75e-7 at most.
static inline Floats gelu(Floats x) {
  const Floats size = larger(x, -x);
  const Floats k = 1.0f / (1.0f + size * 0.231641888f);
  Floats p = fill(0.5307027145f);
  p = p * k - 0.7265760135f;
  p = p * k + 0.7107068705f;
  p = p * k - 0.142248368f;
  p = p * k + 0.127414796f;
  const Floats above = p * k * exponential(size * size * -0.5f);
  return x > 0.0f ? x - x * above : x * above;
}

// One row plus the bias, where there is one, through `function`.
template <typename Function>
static inline void each_biased(float* row, const float* bias, int64_t size, const Function& function) {
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) store(row + i, function(bias ? load(row + i) + load(bias + i) : load(row + i)));
  if (i == size) return;
  const Floats x = load_some(row + i, size - i);
  store_some(row + i, function(bias ? x + load_some(bias + i, size - i) : x), size - i);
}

// Rows of pictures' features that take the place of some rows' embeddings.
struct Pictures {
  int64_t count;
  const int64_t* rows;   // [count]
  const void* features;  // [count, depth of the first product], floats or bfloat16s
  int64_t bits;          // of each number
};

// Room for rows between the products, until the same thread's next call.
static float* between(int64_t size) {
  static thread_local Buffer<float> buffer;
  return grow(buffer, size);
}

// Embeddings y [rows, second.columns] of features x [rows, first.depth].
static void project_rows(Pool& pool, const ProjectorWeights& w, int64_t rows, const float* x, float* y) {
  const int64_t depth = w.first.depth, middle = w.first.columns, columns = w.second.columns;
  each_block(pool, rows, [&](Pool& with, int64_t first, int64_t count) {
    float* wide = between(count * middle);
    float* block = y + first * columns;
    multiply(with, w.first, count, x + first * depth, depth, wide, false);
    each_row(with, count, [&](int64_t r) { each_biased(wide + r * middle, w.bias_1, middle, gelu); });
    multiply(with, w.second, count, wide, middle, block, false);
    if (!w.bias_2) return;
    const auto same = [](Floats v) { return v; };
    each_row(with, count, [&](int64_t r) { each_biased(block + r * columns, w.bias_2, columns, same); });
  });
}

class Projector {
 public:
  explicit Projector(const ProjectorWeights& weights) : weights_(weights) {}

  void project(Pool& pool, int64_t rows, const float* x, float* y) const { project_rows(pool, weights_, rows, x, y); }

  // Puts the embeddings of pictures' rows into x [tokens, second.columns].
  void splice(Pool& pool, const Pictures& pictures, float* x) {
    const int64_t size = weights_.second.columns, count = pictures.count * weights_.first.depth;
    if (!pictures.count) return;
    const float* features = static_cast<const float*>(pictures.features);
    if (pictures.bits == 16) {
      float* floats = grow(features_, count);
      copy_numbers(static_cast<const uint16_t*>(pictures.features), count, floats);
      features = floats;
    }
    float* embeds = grow(embeds_, pictures.count * size);
    project(pool, pictures.count, features, embeds);
    for (int64_t i = 0; i < pictures.count; ++i)
      std::memcpy(x + pictures.rows[i] * size, embeds + i * size, size * sizeof(float));
  }

 private:
  ProjectorWeights weights_;
  Buffer<float> features_, embeds_;
};
