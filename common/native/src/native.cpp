// The library's interface in C: what ctypes calls. Pointers are to float32 and int64 unless they say otherwise; who calls
// answers for their sizes. Nothing here allocates for the caller or keeps what is not named; where memory runs out the
// process ends, unless a function says otherwise.

#include <memory>
#include <new>

#include "decoder.h"
#include "encoder.h"
#include "mover.h"
#include "resize.h"

extern "C" {

int32_t diptych_version() { return 14; }

int32_t diptych_panel() { return kPanel; }

// Depths that weights of 16 bits are filled up to whole steps of.
int32_t diptych_depth_step() { return kDepthStep; }

void* diptych_pool_new(int32_t threads) { return new Pool(threads); }

void diptych_pack(const float* w, int64_t columns, int64_t depth, int64_t first, float* packed) {
  pack(w, columns, depth, first, packed);
}

void diptych_pack_halves(const uint16_t* w, int64_t columns, int64_t depth, int64_t first, uint32_t* words) {
  pack_halves(w, columns, depth, first, words);
}

int32_t diptych_halve(const float* packed, int64_t panels, int64_t depth, uint32_t* words) {
  return halve(packed, panels, depth, words);
}

void diptych_linear(void* pool, const Weights* w, int64_t rows, const float* x, float* y) {
  multiply(*static_cast<Pool*>(pool), *w, rows, x, w->depth, y, false);
}

void diptych_packed_attention(void* pool, const float* query, const float* key, const float* value, int64_t heads,
                              int64_t kv_heads, int64_t head_dim, int64_t sequences, const int64_t* lengths,
                              int32_t causal, int32_t rounds, float scale, float* out) {
  const Heads shape{head_dim, heads / kv_heads, scale, causal != 0, 0, rounds != 0};
  attend_packed(*static_cast<Pool*>(pool), query, out, heads * head_dim, key, value, kv_heads * head_dim, kv_heads,
                shape, sequences, lengths);
}

void* diptych_encoder_new(void* pool, const EncoderShape* shape, const EncoderLayer* layers) {
  return new Encoder(*static_cast<Pool*>(pool), *shape, layers);
}

void diptych_encoder_run(void* encoder, int64_t sequences, const int64_t* lengths, const float* cosines,
                         const float* sines, float* x) {
  static_cast<Encoder*>(encoder)->run(sequences, lengths, cosines, sines, x);
}

void* diptych_decoder_new(void* pool, const DecoderShape* shape, const float* frequencies, const LayerWeights* layers,
                          const float* norm, const Weights* head, const void* table, int64_t table_bits,
                          const ProjectorWeights* projector) {
  return new Decoder(*static_cast<Pool*>(pool), *shape, frequencies, layers, norm, *head, {table, table_bits},
                     projector ? *projector : ProjectorWeights{});
}

// [count, layers]; what they point at must stay.
void diptych_decoder_set_adapters(void* decoder, int64_t count, const AdapterLayer* layers) {
  static_cast<Decoder*>(decoder)->set_adapters(count, layers);
}

void diptych_decoder_hidden(void* decoder, const Batch* batch, int64_t count, const int64_t* rows, float* x) {
  static_cast<Decoder*>(decoder)->hidden(*batch, count, rows, x);
}

void diptych_decoder_logits(void* decoder, int64_t rows, const float* hidden, float* logits) {
  static_cast<Decoder*>(decoder)->logits(rows, hidden, logits);
}

void diptych_decoder_embed(void* decoder, int64_t count, const int64_t* token_ids, float* embeds) {
  static_cast<Decoder*>(decoder)->embed(count, token_ids, embeds);
}

void diptych_decoder_project(void* decoder, int64_t rows, const float* features, float* embeds) {
  static_cast<Decoder*>(decoder)->project_features(rows, features, embeds);
}

// A step: the likeliest token of each of the layout's rows, or -1 where its logits are not all finite.
// The layout is [tokens, requests, max_blocks, rows, bits of a feature, rows of pictures, requests with adapters: all or 0],
// then the token ids and the arrays of Batch in their order, then the rows and those of pictures. Returns how many of the
// choices have another token within the margin.
int64_t diptych_decoder_next(void* decoder, const int64_t* layout, const void* features, float margin, int64_t* chosen) {
  const int64_t tokens = layout[0], requests = layout[1], max_blocks = layout[2], count = layout[3];
  const int64_t* token_ids = layout + 7;
  const int64_t* positions = token_ids + tokens;
  const int64_t* slots = positions + tokens;
  const int64_t* tables = slots + tokens;
  const int64_t* query_lengths = tables + requests * max_blocks;
  const int64_t* seq_lens = query_lengths + requests;
  const int64_t* adapters = seq_lens + requests;
  const Batch batch{tokens,        requests, max_blocks, positions, slots, tables,
                    query_lengths, seq_lens, layout[6] ? adapters : nullptr};
  const int64_t* rows = adapters + layout[6];
  const Pictures pictures{layout[5], rows + count, features, layout[4]};
  return static_cast<Decoder*>(decoder)->next(batch, token_ids, pictures, count, rows, margin, chosen);
}

// Of every row the first of its largest logits; whether all are finite; whether another is within the margin.
void diptych_greedy(int64_t rows, int64_t vocabulary, const float* logits, float margin, int64_t* best,
                    uint8_t* finite, uint8_t* near_tie) {
  for (int64_t r = 0; r < rows; ++r) {
    const Choice choice = choose(logits + r * vocabulary, vocabulary, margin);
    best[r] = choice.token;
    finite[r] = choice.finite;
    near_tie[r] = choice.near_tie;
  }
}

// Whether this processor has what a mover is worth having for.
int32_t diptych_can_take() { return can_take(); }

// Null where the system gives no thread. Not by `make_shared`, which has a symbol that all libraries of a process share.
void* diptych_mover_new() {
  try {
    return new std::shared_ptr<Mover>(new Mover());
  } catch (const std::system_error&) {
    return nullptr;
  }
}

// Its thread ends when all that it was given has ended.
void diptych_mover_delete(void* mover) { delete static_cast<std::shared_ptr<Mover>*>(mover); }

// Begins to copy a chunk; returns what `diptych_move_end` is to be called with, once.
void* diptych_move_begin(void* mover, void* to, const void* from, int64_t size, int32_t value_bytes,
                         uint32_t exponent) {
  const auto& owner = *static_cast<std::shared_ptr<Mover>*>(mover);
  return new Move(owner, {static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), size, value_bytes, exponent});
}

// Waits for a chunk; returns its CRC-32, and above that 1 where a value has all bits of the exponent set.
int64_t diptych_move_end(void* move) {
  const std::unique_ptr<Move> moved(static_cast<Move*>(move));
  return moved->end();
}

// Pixels of four bytes [height, width] to pixels of three [down->size, across->size]. Returns 0, or 1 where the axes do
// not belong to the picture, or 2 where there is not enough memory.
int32_t diptych_resize(const uint8_t* pixels, int64_t width, int64_t height, const Axis* across, const Axis* down,
                       int32_t down_first, uint8_t* out) {
  try {
    return resize({pixels, width, height}, *across, *down, down_first != 0, out) ? 0 : 1;
  } catch (const std::bad_alloc&) {
    return 2;
  }
}

}  // extern "C"
