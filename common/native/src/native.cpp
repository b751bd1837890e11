// The library's interface in C: what ctypes calls. Pointers are to float32 and int64 unless they say otherwise; who calls
// answers for their sizes. Nothing here throws, allocates for the caller or keeps what is not named.

#include "chunks.h"
#include "decoder.h"

extern "C" {

int32_t diptych_version() { return 3; }

int32_t diptych_panel() { return kPanel; }

void* diptych_pool_new(int32_t threads) { return new Pool(threads); }

void diptych_pool_free(void* pool) { delete static_cast<Pool*>(pool); }

void diptych_pack(const float* w, int64_t columns, int64_t depth, int64_t first, float* packed) {
  pack(w, columns, depth, first, packed);
}

void diptych_linear(void* pool, const Weights* w, int64_t rows, const float* x, float* y) {
  multiply(*static_cast<Pool*>(pool), *w, rows, x, w->depth, y, false);
}

void diptych_packed_attention(void* pool, const float* query, const float* key, const float* value, int64_t heads,
                              int64_t kv_heads, int64_t head_dim, int64_t sequences, const int64_t* lengths,
                              int32_t causal, float scale, float* out) {
  struct Part {
    int64_t start, first, rows, length, kv_head;
  };
  std::vector<Part> parts;
  int64_t start = 0;
  for (int64_t i = 0; i < sequences; start += lengths[i++])
    for (int64_t first = 0; first < lengths[i]; first += kChunk)
      for (int64_t head = 0; head < kv_heads; ++head)
        parts.push_back({start, first, std::min(kChunk, lengths[i] - first), lengths[i], head});
  const Heads shape{head_dim, heads / kv_heads, scale, causal != 0, 0};
  const int64_t stride = heads * head_dim, kv_stride = kv_heads * head_dim;
  static_cast<Pool*>(pool)->run(static_cast<int64_t>(parts.size()), [&](int64_t index) {
    static thread_local AttentionScratch scratch;
    const Part& part = parts[index];
    const int64_t row = (part.start + part.first) * stride + part.kv_head * shape.group * head_dim;
    const int64_t offset = part.start * kv_stride + part.kv_head * head_dim;
    attend(query + row, out + row, part.rows, stride, part.first, part.length,
           Tokens{key + offset, nullptr, 0, kv_stride}, Tokens{value + offset, nullptr, 0, kv_stride}, shape, scratch);
  });
}

void* diptych_decoder_new(void* pool, const DecoderShape* shape, const float* frequencies, const LayerWeights* layers,
                          const float* norm, const Weights* head, const float* table) {
  return new Decoder(*static_cast<Pool*>(pool), *shape, frequencies, layers, norm, *head, table);
}

void diptych_decoder_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

void diptych_decoder_hidden(void* decoder, const Batch* batch, float* x) {
  static_cast<Decoder*>(decoder)->hidden(*batch, x);
}

void diptych_decoder_logits(void* decoder, int64_t rows, const float* hidden, float* logits) {
  static_cast<Decoder*>(decoder)->logits(rows, hidden, logits);
}

void diptych_decoder_embed(void* decoder, int64_t count, const int64_t* token_ids, float* embeds) {
  static_cast<Decoder*>(decoder)->embed(count, token_ids, embeds);
}

void diptych_decoder_step(void* decoder, const Batch* batch, const int64_t* token_ids, int64_t count,
                          const int64_t* rows, float* logits) {
  static_cast<Decoder*>(decoder)->step(*batch, token_ids, count, rows, logits);
}

// Of every row the first of its largest logits; whether all are finite; whether another is within the margin.
void diptych_greedy(int64_t rows, int64_t vocabulary, const float* logits, float margin, int64_t* best,
                    uint8_t* finite, uint8_t* near_tie) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = logits + r * vocabulary;
    Floats highest = fill(-INFINITY), bad{};
    int64_t i = 0;
    for (; i + kWidth <= vocabulary; i += kWidth) {
      const Floats x = load(row + i);
      highest = x > highest ? x : highest;
      bad += x - x;  // 0, or NaN where x is none or infinite
    }
    float top = largest(highest), wrong = sum(bad);
    for (; i < vocabulary; ++i) {
      top = row[i] > top ? row[i] : top;
      wrong += row[i] - row[i];
    }
    finite[r] = wrong == 0.0f;
    int64_t first = 0, close = 0;
    if (finite[r]) {
      while (row[first] != top) ++first;
      const float limit = top - margin;
      Ints count{};
      for (i = 0; i + kWidth <= vocabulary; i += kWidth) count -= load(row + i) >= limit;
      for (int lane = 0; lane < kWidth; ++lane) close += count[lane];
      for (; i < vocabulary; ++i) close += row[i] >= limit;
    }
    best[r] = first;
    near_tie[r] = close > 1;
  }
}

// Whether this processor has what diptych_take_chunk is worth calling for.
int32_t diptych_can_take() { return can_take(); }

// Copies a chunk; returns its CRC-32, and above that 1 where a value has all bits of the exponent set.
int64_t diptych_take_chunk(void* to, const void* from, int64_t size, int32_t value_bytes, uint32_t exponent) {
  uint8_t* const place = static_cast<uint8_t*>(to);
  const uint8_t* const bytes = static_cast<const uint8_t*>(from);
  const Taken taken = value_bytes == 2 ? take<uint16_t>(place, bytes, size, static_cast<uint16_t>(exponent))
                                       : take<uint32_t>(place, bytes, size, exponent);
  return static_cast<int64_t>(taken.crc) | static_cast<int64_t>(taken.special) << 32;
}

}  // extern "C"
