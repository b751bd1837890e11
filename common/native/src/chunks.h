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

// Up to 255 bytes, each loaded once. `crc` is the checksum of what came before, not yet turned over.
template <typename Word>
static inline Taken take_few(uint8_t* to, const uint8_t* from, int64_t size, Word exponent, uint32_t crc) {
  uint8_t copy[256];
  std::memcpy(copy, from, size);
  asm volatile("" : : "r"(copy) : "memory");  // or it might be loaded again
  std::memcpy(to, copy, size);
  return {crc_bytes(crc, copy, size), any_special(copy, size, exponent)};
}

#if defined(__x86_64__) && defined(__AVX2__)

static inline bool can_take() { return __builtin_cpu_supports("pclmul"); }

// What is left of many strides is one that has the same remainder.
template <int64_t kStride>
static inline uint32_t crc_of_rest(const void* rest) {
  uint8_t last[kStride];
  std::memcpy(last, rest, kStride);
  return crc_bytes(0, last, kStride);
}

// x times the power of the polynomial that moves it on by one stride, modulo the checksum's: both halves apart.
__attribute__((target("pclmul"))) static inline __m128i moved_on(__m128i x, __m128i powers) {
  return _mm_xor_si128(_mm_clmulepi64_si128(x, powers, 0x00), _mm_clmulepi64_si128(x, powers, 0x11));
}

// As many strides of 64 bytes as there are; returns their bytes.
// Every byte is loaded once: what is checked is what is written, whoever else writes to `from` meanwhile.
template <typename Word>
__attribute__((target("pclmul"))) int64_t take_strides(uint8_t* to, const uint8_t* from, int64_t size, Word exponent,
                                                       Taken& taken) {
  constexpr int64_t kStride = 64, kAhead = 768;
  if (size < kStride) return 0;
  const __m128i powers = _mm_set_epi64x(0x01c6e41596, 0x0154442bd4);
  const __m128i bits = sizeof(Word) == 2 ? _mm_set1_epi16(short(exponent)) : _mm_set1_epi32(int(exponent));
  __m128i rest[4] = {_mm_cvtsi32_si128(int(taken.crc))};
  __m128i special = _mm_setzero_si128();
  // Past the caches, which would read the place first: nobody looks at the features before all of them are there.
  const bool aligned = reinterpret_cast<uintptr_t>(to) % sizeof(__m128i) == 0;
  int64_t done = 0;
  for (; done + kStride <= size; done += kStride) {
    // Read ahead, also behind the end, where it does nothing. Into all caches: past them, what another core wrote takes
    // twice as long on some processors, though it is not needed again.
    _mm_prefetch(reinterpret_cast<const char*>(from + done + kAhead), _MM_HINT_T0);
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
  taken = {crc_of_rest<kStride>(rest), taken.special || !_mm_testz_si128(special, special)};
  return done;
}

#if defined(__AVX512BW__)

// The same with strides of 256 bytes, to a place that is a multiple of 64.
template <typename Word>
__attribute__((target("pclmul,vpclmulqdq"))) int64_t take_wide_strides(uint8_t* to, const uint8_t* from, int64_t size,
                                                                       Word exponent, Taken& taken) {
  constexpr int64_t kStride = 256, kAhead = 1024;
  if (size < kStride) return 0;
  const __m512i powers = _mm512_broadcast_i32x4(_mm_set_epi64x(0x01322d1430, 0x011542778a));
  const __m512i bits = sizeof(Word) == 2 ? _mm512_set1_epi16(short(exponent)) : _mm512_set1_epi32(int(exponent));
  __m512i rest[4] = {_mm512_zextsi128_si512(_mm_cvtsi32_si128(int(taken.crc)))};
  uint32_t special = 0;
  int64_t done = 0;
  for (; done + kStride <= size; done += kStride) {
#pragma GCC unroll 4
    for (int lane = 0; lane < 4; ++lane) {
      const uint8_t* const source = from + done + 64 * lane;
      _mm_prefetch(reinterpret_cast<const char*>(source + kAhead), _MM_HINT_T0);
      __m512i x = _mm512_loadu_si512(source);
      asm volatile("" : "+v"(x));  // or it might be loaded again
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + done) + lane, x);
      const __m512i masked = _mm512_and_si512(x, bits);
      special |= sizeof(Word) == 2 ? _mm512_cmpeq_epi16_mask(masked, bits) : _mm512_cmpeq_epi32_mask(masked, bits);
      if (done) {
        const __m512i low = _mm512_clmulepi64_epi128(rest[lane], powers, 0x00);
        x = _mm512_xor_si512(x, _mm512_xor_si512(low, _mm512_clmulepi64_epi128(rest[lane], powers, 0x11)));
        rest[lane] = x;
      } else {
        rest[lane] = _mm512_xor_si512(rest[lane], x);
      }
    }
  }
  _mm_sfence();
  taken = {crc_of_rest<kStride>(rest), taken.special || special != 0};
  return done;
}

#endif

template <typename Word>
Taken take(uint8_t* to, const uint8_t* from, int64_t size, Word exponent) {
  Taken taken{0xFFFFFFFFu, false};
  int64_t done = 0;
#if defined(__AVX512BW__)
  const int64_t before = -reinterpret_cast<uintptr_t>(to) % 64;  // bytes up to a multiple of 64
  if (size >= 512 && before % sizeof(Word) == 0 && __builtin_cpu_supports("vpclmulqdq")) {
    taken = take_few(to, from, before, exponent, taken.crc);
    done = before + take_wide_strides(to + before, from + before, size - before, exponent, taken);
  }
#endif
  done += take_strides(to + done, from + done, size - done, exponent, taken);
  const Taken last = take_few(to + done, from + done, size - done, exponent, taken.crc);
  return {~last.crc, taken.special || last.special};
}

#else

static inline bool can_take() { return false; }

template <typename Word>
Taken take(uint8_t* to, const uint8_t* from, int64_t size, Word exponent) {
  std::memcpy(to, from, size);
  return {~crc_bytes(0xFFFFFFFFu, to, size), any_special(to, size, exponent)};
}

#endif
