// What a pass of the decoder is given: the model's shape, a layer's weights, and the layout of a batch.
#pragma once

#include "weights.h"

struct DecoderShape {
  int64_t hidden, layers, heads, kv_heads, head_dim, feed_forward, vocabulary, block_size, window, kv_bits;
  float eps, scale;
};

struct LayerWeights {
  const float* input_norm;
  Weights qkv, output;
  const float* post_norm;
  Weights gate_up, down;
  void *keys, *values;  // [num_blocks, block_size, kv_heads, head_dim], floats or bfloat16s
};

struct Batch {
  int64_t tokens, requests, max_blocks;
  const int64_t* positions;      // [tokens]
  const int64_t* slots;          // [tokens]
  const int64_t* tables;         // [requests, max_blocks]
  const int64_t* query_lengths;  // [requests]
  const int64_t* seq_lens;       // [requests]
  const int64_t* adapters;       // [requests], -1 for none; null where nobody has one
};
