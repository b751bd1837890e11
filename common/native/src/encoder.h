// All layers of the patch encoder over pictures that are packed one after another, in one call.
// Knows packed weights and rows. Does not know pictures: where a patch stands comes as cosines and sines.
#pragma once

#include <vector>

#include "feed_forward.h"
#include "packed.h"

struct EncoderShape {
  int64_t hidden, layers, heads, head_dim, feed_forward;
  float eps, scale;
};

struct EncoderLayer {
  const float* attention_norm;
  Weights qkv, output;
  const float* feed_forward_norm;
  Weights gate_up, down;
};

class Encoder {
 public:
  Encoder(Pool& pool, const EncoderShape& shape, const EncoderLayer* layers)
      : pool_(pool), shape_(shape), layers_(layers, layers + shape.layers) {}

  // x [rows, hidden] goes through the layers in place; cosines and sines [rows, head_dim / 2].
  void run(int64_t sequences, const int64_t* lengths, const float* cosines, const float* sines, float* x) {
    int64_t rows = 0;
    for (int64_t i = 0; i < sequences; ++i) rows += lengths[i];
    const int64_t width = shape_.heads * shape_.head_dim;
    // Given back when all is done: batches of pictures may be large, and come now and then.
    Buffer<float> qkv(rows * 3 * width);
    for (const EncoderLayer& layer : layers_) {
      each_block(pool_, rows, [&](Pool& pool, int64_t first, int64_t count) {
        project(pool, layer, count, x + first * shape_.hidden, cosines + first * shape_.head_dim / 2,
                sines + first * shape_.head_dim / 2, qkv.data() + first * 3 * width);
      });
      const Heads heads{shape_.head_dim, 1, shape_.scale, false, 0, layer.qkv.rounds != 0};
      attend_packed(pool_, qkv.data(), qkv.data(), 3 * width, qkv.data() + width, qkv.data() + 2 * width, 3 * width,
                    shape_.heads, heads, sequences, lengths);
      each_block(pool_, rows, [&](Pool& pool, int64_t first, int64_t count) {
        float* block = x + first * shape_.hidden;
        multiply(pool, layer.output, count, qkv.data() + first * 3 * width, 3 * width, block, true);
        feed_forward(pool, layer.feed_forward_norm, shape_.eps, layer.gate_up, layer.down, count, block);
      });
    }
  }

 private:
  // Query, key and value of each row, the first two turned.
  void project(Pool& pool, const EncoderLayer& layer, int64_t rows, const float* x, const float* cosines,
               const float* sines, float* qkv) {
    const int64_t half = shape_.head_dim / 2, width = 3 * shape_.heads * shape_.head_dim;
    const float* inputs = normed(pool, layer.attention_norm, shape_.eps, shape_.hidden, rows, x);
    multiply(pool, layer.qkv, rows, inputs, shape_.hidden, qkv, false);
    each_row(pool, rows, [&](int64_t r) {
      rotate(qkv + r * width, 2 * shape_.heads, shape_.head_dim, cosines + r * half, sines + r * half);
    });
  }

  Pool& pool_;
  EncoderShape shape_;
  std::vector<EncoderLayer> layers_;
};
