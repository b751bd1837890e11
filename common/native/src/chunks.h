// A chunk of features on its way to its final place: copied, its CRC-32 taken, and its values looked at, in one pass over
// memory. Knows bytes. Does not know messages.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// The checksum of zlib: the remainder of the bytes as a polynomial over two elements, each byte's lowest bit first.
struct CrcTable {
  uint32_t of[256];
  constexpr CrcTable() : of{} {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t rest = byte;
      for (int bit = 0; bit < 8; ++bit) rest = rest >> 1 ^ (rest & 1 ? 0xEDB88320u : 0);
      of[byte] = rest;
    }
  }
};

constexpr CrcTable kCrcTable{};

static inline uint32_t crc_bytes(uint32_t rest, const uint8_t* bytes, int64_t size) {
  for (int64_t i = 0; i < size; ++i) rest = rest >> 8 ^ kCrcTable.of[(rest ^ bytes[i]) & 0xFF];
  return rest;
}

// Whether one of the first `size` bytes' values has all bits of `exponent`, which none but infinities and NaNs have.
template <typename Word>
static inline bool any_special(const uint8_t* bytes, int64_t size, Word exponent) {
  bool found = false;
  for (int64_t i = 0; i + int64_t(sizeof(Word)) <= size; i += sizeof(Word)) {
    Word value;
    std::memcpy(&value, bytes + i, sizeof value);
    found |= (value & exponent) == exponent;
  }
  return found;
}

struct Taken {
  uint32_t crc;
  bool special;
};

#if defined(__x86_64__) && defined(__AVX2__)

constexpr int64_t kStride = 64;
constexpr int64_t kAhead = 768;

static inline bool can_take() { return __builtin_cpu_supports("pclmul"); }

// x times the power of the polynomial that moves it on by one stride, modulo the checksum's: both halves apart.
__attribute__((target("pclmul"))) static inline __m128i moved_on(__m128i x, __m128i powers) {
  return _mm_xor_si128(_mm_clmulepi64_si128(x, powers, 0x00), _mm_clmulepi64_si128(x, powers, 0x11));
}

// Every byte is loaded once: what is checked is what is written, whoever else writes to `from` meanwhile.
template <typename Word>
__attribute__((target("pclmul"))) Taken take(uint8_t* to, const uint8_t* from, int64_t size, Word exponent) {
  const __m128i powers = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4);
  const __m128i bits = sizeof(Word) == 2 ? _mm_set1_epi16(short(exponent)) : _mm_set1_epi32(int(exponent));
  __m128i rest[4] = {_mm_cvtsi32_si128(-1), _mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128()};
  __m128i special = _mm_setzero_si128();
  // Past the caches, which would read the place first: nobody looks at the features before all of them are there.
  const bool aligned = reinterpret_cast<uintptr_t>(to) % sizeof(__m128i) == 0;
  int64_t done = 0;
  for (; done + kStride <= size; done += kStride) {
    // Read ahead, also behind the end, where it does nothing; what was read is not needed again.
    _mm_prefetch(reinterpret_cast<const char*>(from + done + kAhead), _MM_HINT_NTA);
#pragma GCC unroll 4
    for (int lane = 0; lane < 4; ++lane) {
      __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + done) + lane);
      asm volatile("" : "+x"(x));  // or it might be loaded again
      __m128i* const place = reinterpret_cast<__m128i*>(to + done) + lane;
      aligned ? _mm_stream_si128(place, x) : _mm_storeu_si128(place, x);
      const __m128i masked = _mm_and_si128(x, bits);
      special = _mm_or_si128(
          special, sizeof(Word) == 2 ? _mm_cmpeq_epi16(masked, bits) : _mm_cmpeq_epi32(masked, bits));
      rest[lane] = done ? _mm_xor_si128(moved_on(rest[lane], powers), x) : _mm_xor_si128(rest[lane], x);
    }
  }
  _mm_sfence();
  uint32_t crc = 0xFFFFFFFFu;
  if (done) {
    // What is left of all strides is a stride that has the same remainder.
    uint8_t last[kStride];
    std::memcpy(last, rest, kStride);
    crc = crc_bytes(0, last, kStride);
  }
  uint8_t tail[kStride];
  std::memcpy(tail, from + done, size - done);
  asm volatile("" : : "r"(tail) : "memory");  // or it might be loaded again
  std::memcpy(to + done, tail, size - done);
  return {~crc_bytes(crc, tail, size - done),
          !_mm_testz_si128(special, special) || any_special(tail, size - done, exponent)};
}

#else

static inline bool can_take() { return false; }

template <typename Word>
Taken take(uint8_t* to, const uint8_t* from, int64_t size, Word exponent) {
  std::memcpy(to, from, size);
  return {~crc_bytes(0xFFFFFFFFu, to, size), any_special(to, size, exponent)};
}

#endif
