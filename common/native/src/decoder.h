// All layers of a Mistral decoder over one batch, in one call.
// Knows packed weights, the KV cache's blocks and a batch's layout. Does not know requests or sampling.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "adapters.h"
#include "attention.h"
#include "feed_forward.h"
#include "greedy.h"
#include "projector.h"
#include "step.h"

class Decoder {
 public:
  // Without a table of embeddings the head's packed weights are read.
  Decoder(Pool& pool, const DecoderShape& shape, const float* frequencies, const LayerWeights* layers,
          const float* norm, const Weights& head, const Embeddings& table, const ProjectorWeights& projector)
      : pool_(pool), shape_(shape), frequencies_(frequencies, frequencies + shape.head_dim / 2),
        layers_(layers, layers + shape.layers), norm_(norm), head_(head), table_(table), projector_(projector) {}

  // For each adapter as many layers as the decoder has. What batches ask for are places among these.
  void set_adapters(int64_t count, const AdapterLayer* layers) {
    adapters_.assign(layers, layers + count * shape_.layers);
  }

  // A whole step: the likeliest token of `count` rows of the batch, -1 where one's logits are not all
  // finite. Returns how many of them are near ties.
  int64_t next(const Batch& batch, const int64_t* token_ids, const Pictures& pictures, int64_t count,
               const int64_t* rows, float margin, int64_t* chosen) {
    const int64_t size = shape_.hidden, vocabulary = shape_.vocabulary;
    float* x = grow(rows_, batch.tokens * size);
    embed(batch.tokens, token_ids, x);
    projector_.splice(pool_, pictures, x);
    hidden(batch, count, rows, x);
    int64_t near_ties = 0;
    // A product takes in so many rows at once anyway, and more logits than theirs would only take up memory.
    for (int64_t first = 0; first < count; first += kRowBlock) {
      const int64_t taken = std::min(kRowBlock, count - first);
      float* last = grow(last_, taken * size);
      for (int64_t i = 0; i < taken; ++i)
        std::memcpy(last + i * size, x + rows[first + i] * size, size * sizeof(float));
      float* scores = grow(logits_, taken * vocabulary);
      logits(taken, last, scores);
      for (int64_t i = 0; i < taken; ++i) {
        const Choice choice = choose(scores + i * vocabulary, vocabulary, margin);
        chosen[first + i] = choice.finite ? choice.token : -1;
        near_ties += choice.near_tie;
      }
    }
    return near_ties;
  }

  // Embeddings [rows, hidden] of rows of pictures' features.
  void project_features(int64_t rows, const float* features, float* embeds) {
    projector_.project(pool_, rows, features, embeds);
  }

  void embed(int64_t count, const int64_t* token_ids, float* to) const {
    const int64_t size = shape_.hidden;
    for (int64_t i = 0; i < count; ++i) {
      if (table_.rows)
        table_.take(token_ids[i], size, to + i * size);
      else
        take_column(head_, token_ids[i], to + i * size);
    }
  }

  // x [tokens, hidden] goes through the layers in place. Of the last layer all rows have keys and values, but only `count`
  // of them, which are told by `rows`, have a result; the others are of no use afterwards.
  void hidden(const Batch& batch, int64_t count, const int64_t* rows, float* x) {
    float* qkv = grow(qkv_, batch.tokens * qkv_width());
    turns(batch);
    plan(batch);
    ask(batch);
    for (const LayerWeights& layer : layers_) {
      project(layer, batch, x, qkv);
      if (&layer == &layers_.back() && count < batch.tokens) return finish_some(layer, batch, count, rows, x);
      attend_all(layer, batch, parts_, qkv);
      finish(layer, batch.tokens, asked_, qkv, x);
    }
  }

  // logits [rows, vocabulary] of hidden rows.
  void logits(int64_t rows, const float* x, float* y) {
    const float* inputs = normed(pool_, norm_, shape_.eps, shape_.hidden, rows, x);
    multiply(pool_, head_, rows, inputs, shape_.hidden, y, false);
  }

 private:
  struct Part {
    int64_t request, row, rows, position, kv_head;
  };

  Heads heads_of(const LayerWeights& layer) const {
    const auto& s = shape_;
    return {s.head_dim, s.heads / s.kv_heads, s.scale, true, s.window, layer.qkv.rounds != 0};
  }

  // Those of a layer for the rows from `first` on; `asked` is each row's adapter, or empty.
  Changes changes(const LayerWeights& layer, const std::vector<int64_t>& asked, int64_t first) const {
    if (asked.empty()) return {};
    return {adapters_.data() + (&layer - layers_.data()), shape_.layers, asked.data() + first};
  }

  int64_t qkv_width() const { return (shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim; }

  // Query, key and value of each row, the latter two in the cache.
  void project(const LayerWeights& layer, const Batch& batch, const float* x, float* qkv) {
    const auto& s = shape_;
    const int64_t width = qkv_width();
    each_block(pool_, batch.tokens, [&](Pool& pool, int64_t first, int64_t count) {
      const float* inputs = normed(pool, layer.input_norm, s.eps, s.hidden, count, x + first * s.hidden);
      multiply(pool, layer.qkv, count, inputs, s.hidden, qkv + first * width, false);
      const Changes added = changes(layer, asked_, first);
      added.add(pool, &AdapterLayer::qkv, count, inputs, s.hidden, qkv + first * width);
      each_row(pool, count, [&](int64_t r) { keep(layer, batch.slots[first + r], first + r, width, qkv); });
    });
  }

  // What comes after attention; `asked` is as for `changes`.
  void finish(const LayerWeights& layer, int64_t rows, const std::vector<int64_t>& asked, const float* qkv, float* x) {
    const int64_t width = qkv_width();
    each_block(pool_, rows, [&](Pool& pool, int64_t first, int64_t count) {
      float* block = x + first * shape_.hidden;
      const Changes added = changes(layer, asked, first);
      multiply(pool, layer.output, count, qkv + first * width, width, block, true);
      added.add(pool, &AdapterLayer::output, count, qkv + first * width, width, block);
      feed_forward(pool, layer.post_norm, shape_.eps, layer.gate_up, layer.down, count, block, added);
    });
  }

  // Attention and what comes after it for some rows, which stand together meanwhile.
  void finish_some(const LayerWeights& layer, const Batch& batch, int64_t count, const int64_t* rows, float* x) {
    const int64_t size = shape_.hidden, width = qkv_width();
    float* some = grow(some_, count * size);
    float* qkv = grow(some_qkv_, count * width);
    some_parts_.clear();
    some_asked_.clear();
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(some + i * size, x + rows[i] * size, size * sizeof(float));
      std::memcpy(qkv + i * width, qkv_.data() + rows[i] * width, shape_.heads * shape_.head_dim * sizeof(float));
      const auto after = std::upper_bound(firsts_.begin(), firsts_.end(), rows[i]);
      const int64_t request = after - firsts_.begin() - 1;
      if (!asked_.empty()) some_asked_.push_back(asked_[rows[i]]);
      const int64_t position = batch.seq_lens[request] - batch.query_lengths[request] + rows[i] - firsts_[request];
      for (int64_t head = 0; head < shape_.kv_heads; ++head) some_parts_.push_back({request, i, 1, position, head});
    }
    attend_all(layer, batch, some_parts_, qkv);
    finish(layer, count, some_asked_, qkv, some);
    for (int64_t i = 0; i < count; ++i) std::memcpy(x + rows[i] * size, some + i * size, size * sizeof(float));
  }

  void turns(const Batch& batch) {
    const int64_t half = shape_.head_dim / 2;
    float* cosines = grow(cosines_, batch.tokens * half);
    float* sines = grow(sines_, batch.tokens * half);
    each_row(pool_, batch.tokens, [&](int64_t r) {
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(batch.positions[r]) * frequencies_[i];
        cosines[r * half + i] = std::cos(angle);
        sines[r * half + i] = std::sin(angle);
      }
    });
  }

  // Which adapter each row has; none has one where nobody asks.
  void ask(const Batch& batch) {
    asked_.clear();
    for (int64_t i = 0; batch.adapters && i < batch.requests; ++i)
      asked_.insert(asked_.end(), batch.query_lengths[i], batch.adapters[i]);
  }

  // Who attends to what, in parts of some rows and one key-value head.
  void plan(const Batch& batch) {
    parts_.clear();
    firsts_.clear();
    const int64_t chunk = part_rows(heads_of(layers_.front()));
    int64_t row = 0;
    for (int64_t i = 0; i < batch.requests; ++i) {
      const int64_t length = batch.query_lengths[i], start = batch.seq_lens[i] - length;
      firsts_.push_back(row);
      for (int64_t first = 0; first < length; first += chunk)
        for (int64_t head = 0; head < shape_.kv_heads; ++head)
          parts_.push_back({i, row + first, std::min(chunk, length - first), start + first, head});
      row += length;
    }
  }

  // Rotates one row's query and key, and keeps key and value in the cache.
  void keep(const LayerWeights& layer, int64_t slot, int64_t r, int64_t stride, float* qkv) {
    const auto& s = shape_;
    const int64_t half = s.head_dim / 2, width = s.kv_heads * s.head_dim;
    float* row = qkv + r * stride;
    float* key = row + s.heads * s.head_dim;
    rotate(row, s.heads + s.kv_heads, s.head_dim, cosines_.data() + r * half, sines_.data() + r * half);
    (s.kv_bits == 16 ? keep_as<uint16_t> : keep_as<float>)(layer, slot, width, key);
  }

  // Key and value stand one after another, `width` numbers each.
  template <typename Stored>
  static void keep_as(const LayerWeights& layer, int64_t slot, int64_t width, const float* key) {
    copy_numbers(key, width, static_cast<Stored*>(layer.keys) + slot * width);
    copy_numbers(key + width, width, static_cast<Stored*>(layer.values) + slot * width);
  }

  // The result takes the query's place.
  void attend_all(const LayerWeights& layer, const Batch& batch, const std::vector<Part>& parts, float* qkv) {
    if (shape_.kv_bits == 16)
      attend_to<uint16_t>(layer, batch, parts, qkv);
    else
      attend_to<float>(layer, batch, parts, qkv);
  }

  template <typename Stored>
  void attend_to(const LayerWeights& layer, const Batch& batch, const std::vector<Part>& parts, float* qkv) {
    const auto& s = shape_;
    const Stored *keys = static_cast<const Stored*>(layer.keys), *values = static_cast<const Stored*>(layer.values);
    const int64_t stride = qkv_width(), width = s.kv_heads * s.head_dim;
    const Heads heads = heads_of(layer);
    pool_.run(static_cast<int64_t>(parts.size()), [&](int64_t index) {
      const Part& part = parts[index];
      const int64_t* table = batch.tables + part.request * batch.max_blocks;
      const int64_t offset = part.kv_head * s.head_dim;
      float* query = qkv + part.row * stride + part.kv_head * heads.group * s.head_dim;
      attend(query, query, part.rows, stride, part.position, part.position + part.rows,
             Tokens<Stored>{keys + offset, values + offset, table, s.block_size, width}, heads);
    });
  }

  Pool& pool_;
  DecoderShape shape_;
  std::vector<float> frequencies_;
  std::vector<LayerWeights> layers_;
  const float* norm_;
  Weights head_;
  Embeddings table_;
  Projector projector_;
  Buffer<float> rows_, last_, logits_, qkv_, cosines_, sines_, some_, some_qkv_;
  std::vector<Part> parts_, some_parts_;
  std::vector<int64_t> firsts_;  // row of each request's first token
  std::vector<AdapterLayer> adapters_;
  std::vector<int64_t> asked_, some_asked_;  // each row's adapter
};
