// Registers of bytes in lanes of sixteen, and exact sums of weighed bytes. Knows registers and weights of 32 bits. Does
// not know pictures.
//
// A quad is four neighbours' bytes in one number of 32 bits. Weights are taken apart, so that a processor multiplies
// and adds several bytes in one instruction: in two halves of 16 bits, or, with VNNI, in three digits of 8. Sums are
// put together modulo 2 to the power of 32: only the whole sum must have room in 32 bits, and not what it is made of.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512BW__)
constexpr int kLaneCount = 4;
#elif defined(__AVX2__)
constexpr int kLaneCount = 2;
#else
constexpr int kLaneCount = 1;
#endif
constexpr int kLane = 16;  // bytes
constexpr int kRegister = kLaneCount * kLane;

typedef uint8_t Lane __attribute__((vector_size(kLane)));
typedef uint8_t Bytes __attribute__((vector_size(kRegister)));
typedef uint16_t Words __attribute__((vector_size(kRegister)));
typedef uint32_t Quads __attribute__((vector_size(kRegister)));
typedef int32_t Signed __attribute__((vector_size(kRegister)));

static inline Bytes load_bytes(const uint8_t* p) {
  Bytes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline void store_bytes(uint8_t* p, Bytes v) { std::memcpy(p, &v, sizeof v); }

template <int kCount>
struct Joined {
  typedef uint8_t type __attribute__((vector_size(kCount * kLane)));
};

template <typename V, int... I>
static inline auto join(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, I...);
}

template <int kCount>
static inline typename Joined<kCount>::type gather_lanes(const uint8_t* const* rows, int64_t at) {
  if constexpr (kCount == 1) {
    typename Joined<1>::type v;
    std::memcpy(&v, rows[0] + at, sizeof v);
    return v;
  } else {
    return join(gather_lanes<kCount / 2>(rows, at), gather_lanes<kCount / 2>(rows + kCount / 2, at),
                std::make_integer_sequence<int, kCount * kLane>{});
  }
}

// The same sixteen bytes of kLaneCount rows.
static inline Bytes gather(const uint8_t* const (&rows)[kLaneCount], int64_t at) {
  return gather_lanes<kLaneCount>(rows, at);
}

// Fewer than sixteen, and zeros behind them.
static inline Bytes gather_few(const uint8_t* const (&rows)[kLaneCount], int64_t at, int64_t size) {
  uint8_t lanes[kRegister] = {};
  for (int i = 0; i < kLaneCount; ++i) std::memcpy(lanes + i * kLane, rows[i] + at, size);
  return load_bytes(lanes);
}

static inline void scatter(Bytes v, uint8_t* const (&rows)[kLaneCount], int64_t at) {
  uint8_t lanes[kRegister];
  store_bytes(lanes, v);
  for (int i = 0; i < kLaneCount; ++i) std::memcpy(rows[i] + at, lanes + i * kLane, kLane);
}

template <int... I>
static inline Bytes turn(Bytes v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I / 16 * 16 + I % 4 * 4 + I % 16 / 4)...);
}

// Each lane as a square of four by four bytes, its rows and columns changed over.
static inline Bytes turn(Bytes v) { return turn(v, std::make_integer_sequence<int, kRegister>{}); }

// Of each lane of a and b one half, in pieces of so many elements by turns.
template <int kHalf, typename V, int... I>
static inline V interleave(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int count = sizeof...(I), lane = count / kLaneCount;
  return __builtin_shufflevector(a, b, (I / lane * lane + kHalf * lane / 2 + I % lane / 2 + I % 2 * count)...);
}

// Bytes of four rows as quads: in register i those of every lane's bytes 4 i to 4 i + 3.
static inline void quads_of(const Bytes (&rows)[4], Quads (&quads)[4]) {
  constexpr auto bytes = std::make_integer_sequence<int, kRegister>{};
  constexpr auto words = std::make_integer_sequence<int, kRegister / 2>{};
  const Words a = (Words)interleave<0>(rows[0], rows[1], bytes), b = (Words)interleave<1>(rows[0], rows[1], bytes);
  const Words c = (Words)interleave<0>(rows[2], rows[3], bytes), d = (Words)interleave<1>(rows[2], rows[3], bytes);
  quads[0] = (Quads)interleave<0>(a, c, words);
  quads[1] = (Quads)interleave<1>(a, c, words);
  quads[2] = (Quads)interleave<0>(b, d, words);
  quads[3] = (Quads)interleave<1>(b, d, words);
}

// The products of two words each, added.
static inline Quads multiply_words(Words a, Words b) {
#if defined(__AVX512BW__)
  return (Quads)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Quads)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  const Signed x = (Signed)a, y = (Signed)b;
  return (Quads)((x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16));
#endif
}

// Sums with weights in halves.
struct Halves {
  static constexpr int kLowBits = 15;  // the lower half has no sign

  // Of four neighbours: what belongs to the first and third, and to the second and fourth.
  struct Weights {
    uint32_t high[2], low[2];

    explicit Weights(const int32_t (&w)[4]) {
      for (int i = 0; i < 2; ++i) {
        high[i] = pair(w[i] >> kLowBits, w[i + 2] >> kLowBits);
        low[i] = pair(w[i] & ((1 << kLowBits) - 1), w[i + 2] & ((1 << kLowBits) - 1));
      }
    }

    static uint32_t pair(int32_t a, int32_t b) {
      return (static_cast<uint32_t>(a) & 0xFFFF) | static_cast<uint32_t>(b) << 16;
    }
  };

  Quads high, low;

  explicit Halves(uint32_t start) : high{}, low(start + Quads{}) {}

  void add(Quads quads, const Weights& w) {
    const Words first = (Words)(quads & 0x00FF00FFu), second = (Words)quads >> 8;
    high += multiply_words(first, words(w.high[0])) + multiply_words(second, words(w.high[1]));
    low += multiply_words(first, words(w.low[0])) + multiply_words(second, words(w.low[1]));
  }

  Signed total() const { return (Signed)((high << kLowBits) + low); }

 private:
  static Words words(uint32_t pair) { return (Words)(pair + Quads{}); }
};

#if defined(__AVX512BW__)

// Sums with weights in digits to the base of 256, each with a sign.
struct Digits {
  struct Weights {
    uint32_t of[3];

    explicit Weights(const int32_t (&w)[4]) : of{} {
      for (int i = 0; i < 4; ++i) {
        int32_t rest = w[i];
        for (uint32_t& digits : of) {
          const int8_t digit = static_cast<int8_t>(rest);
          digits |= static_cast<uint32_t>(static_cast<uint8_t>(digit)) << 8 * i;
          rest = (rest - digit) >> 8;
        }
      }
    }
  };

  Quads sums[3];

  explicit Digits(uint32_t start) : sums{start + Quads{}, Quads{}, Quads{}} {}

  __attribute__((target("avx512vnni"))) void add(Quads quads, const Weights& w) {
    for (int i = 0; i < 3; ++i)
      sums[i] = (Quads)_mm512_dpbusd_epi32((__m512i)sums[i], (__m512i)quads, _mm512_set1_epi32(w.of[i]));
  }

  Signed total() const { return (Signed)((((sums[2] << 8) + sums[1]) << 8) + sums[0]); }
};

#endif

// Four registers of sums as bytes, less `bits` bits and cut to their range: of every lane, element j of sums i becomes
// byte 4 i + j.
template <typename Sums>
static inline Bytes bytes_of(const Sums (&sums)[4], int bits) {
  Quads quads{};
  for (int i = 0; i < 4; ++i) {
    Signed v = sums[i].total() >> bits;
    v = v < 0 ? 0 : v;
    v = v > 255 ? 255 : v;
    quads |= (Quads)v << 8 * i;
  }
  return turn((Bytes)quads);
}
