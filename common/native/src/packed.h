// Attention inside each of several sequences that lie one after another.
// Knows rows and lengths. Does not know what they are of.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"

// Rows of query and out stand `stride` floats apart, those of keys and values `kv_stride`; out may be query.
static void attend_packed(Pool& pool, const float* query, float* out, int64_t stride, const float* key,
                          const float* value, int64_t kv_stride, int64_t kv_heads, const Heads& heads,
                          int64_t sequences, const int64_t* lengths) {
  struct Part {
    int64_t start, first, rows, length, kv_head;
  };
  std::vector<Part> parts;
  const int64_t chunk = part_rows(heads);
  int64_t start = 0;
  for (int64_t i = 0; i < sequences; start += lengths[i++])
    for (int64_t first = 0; first < lengths[i]; first += chunk)
      for (int64_t head = 0; head < kv_heads; ++head)
        parts.push_back({start, first, std::min(chunk, lengths[i] - first), lengths[i], head});
  pool.run(static_cast<int64_t>(parts.size()), [&](int64_t index) {
    const Part& part = parts[index];
    const int64_t row = (part.start + part.first) * stride + part.kv_head * heads.group * heads.head_dim;
    const int64_t offset = part.start * kv_stride + part.kv_head * heads.head_dim;
    attend(query + row, out + row, part.rows, stride, part.first, part.length,
           Tokens<float>{key + offset, value + offset, nullptr, 0, kv_stride}, heads);
  });
}
