// Vectors of float32 as wide as the compile target has them, and the little arithmetic that the kernels share.
// Knows registers. Does not know matrices.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kWidth = 16;  // floats in a vector
constexpr int kMaxRows = 14;  // rows of a product that fit the registers beside two vectors of weights
#elif defined(__AVX__)
constexpr int kWidth = 8;
constexpr int kMaxRows = 6;
#else
constexpr int kWidth = 4;
constexpr int kMaxRows = 6;
#endif
constexpr int kPanel = 2 * kWidth;  // columns of a product that are computed together

typedef float Floats __attribute__((vector_size(kWidth * 4)));
typedef int32_t Ints __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Unsigned __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Shorts __attribute__((vector_size(kWidth * 4)));
typedef uint16_t HalfVector __attribute__((vector_size(kWidth * 2)));

static inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

// Less zero, not plus zero: only that is x for every x, -0 among them, and so an addition that compilers leave out.
static inline Floats fill(float x) { return x - Floats{}; }

// The bfloat16s in the halves of words, as floats; a float's own upper half is the float cut off to one.
static inline Floats upper_half(Floats v) {
  return reinterpret_cast<Floats>(reinterpret_cast<Unsigned>(v) & 0xFFFF0000u);
}

static inline Floats lower_half(Floats v) { return reinterpret_cast<Floats>(reinterpret_cast<Unsigned>(v) << 16); }

// The nearest bfloat16s, ties to even, as floats; what is too large becomes infinite, and NaN stays NaN.
static inline Floats rounded(Floats v) {
  const Unsigned bits = reinterpret_cast<Unsigned>(v);
  const Floats nearest = upper_half(reinterpret_cast<Floats>(bits + 0x7FFFu + (bits >> 16 & 1u)));
  return v == v ? nearest : fill(__builtin_nanf(""));
}

// kWidth bfloat16s as floats.
static inline Floats load(const uint16_t* p) {
  HalfVector halves;
  std::memcpy(&halves, p, sizeof halves);
  return reinterpret_cast<Floats>(__builtin_convertvector(halves, Unsigned) << 16);
}

// Floats as the nearest bfloat16s.
static inline void store(uint16_t* p, Floats v) {
  const HalfVector halves = __builtin_convertvector(reinterpret_cast<Unsigned>(rounded(v)) >> 16, HalfVector);
  std::memcpy(p, &halves, sizeof halves);
}

// The first `count` numbers of a vector, zeros behind them.
template <typename Stored>
static inline Floats load_some(const Stored* p, int64_t count) {
  Stored some[kWidth] = {};
  std::memcpy(some, p, count * sizeof(Stored));
  return load(some);
}

template <typename Stored>
static inline void store_some(Stored* p, Floats v, int64_t count) {
  Stored some[kWidth];
  store(some, v);
  std::memcpy(p, some, count * sizeof(Stored));
}

// Numbers of one type as those of another.
template <typename From, typename To>
static inline void copy_numbers(const From* from, int64_t count, To* to) {
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, load(from + i));
  if (i < count) store_some(to + i, load_some(from + i, count - i), count - i);
}

// Whether all are numbers that bfloat16 has, too: the upper half of a float32.
static inline bool are_halves(Floats a, Floats b) {
  const Unsigned rest = (reinterpret_cast<Unsigned>(a) | reinterpret_cast<Unsigned>(b)) & 0xFFFFu;
  uint32_t lost = 0;
  for (int i = 0; i < kWidth; ++i) lost |= rest[i];
  return lost == 0;
}

static inline Ints lanes() {
  Ints v;
  for (int i = 0; i < kWidth; ++i) v[i] = i;
  return v;
}

// kWidth bytes as floats. Compilers take such a conversion apart, so it is named where the target has it.
static inline Floats widen(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  Floats v;
  for (int i = 0; i < kWidth; ++i) v[i] = p[i];
  return v;
#endif
}

template <int N, int... I>
static inline Floats turned(Floats v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, ((I + N) % kWidth)...);
}

// Sums of halves, always in the same order. All stays in registers: by way of memory each half waits for the one before.
template <int N = kWidth / 2>
static inline float sum(Floats v) {
  v += turned<N>(v, std::make_integer_sequence<int, kWidth>{});
  if constexpr (N == 1) return v[0];
  else return sum<N / 2>(v);
}

// Of each pair the larger or smaller one, b where either is NaN.
static inline Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

static inline Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

template <int N = kWidth / 2>
static inline float largest(Floats v) {
  v = larger(v, turned<N>(v, std::make_integer_sequence<int, kWidth>{}));
  if constexpr (N == 1) return v[0];
  else return largest<N / 2>(v);
}

// 2 to the power of x to about one unit in the last place: n being x rounded, 2**n times the Taylor series of 2**(x - n).
// What is below -125 counts as that; above 127 nothing is right; NaN stays NaN.
static inline Floats power_of_two(Floats x) {
  x = larger(fill(-125.0f), x);
  const Floats shifted = x + 12582912.0f;  // rounds to whole numbers
  const Floats r = x - (shifted - 12582912.0f);
  Floats p = fill(1.52527338e-5f);
  p = p * r + 1.54035304e-4f;
  p = p * r + 1.33335581e-3f;
  p = p * r + 9.61812911e-3f;
  p = p * r + 5.55041087e-2f;
  p = p * r + 2.40226507e-1f;
  p = p * r + 6.93147181e-1f;
  p = p * r + 1.0f;
  // The lowest bits of `shifted` are n. Without a sign, as what is not right may go beyond any number.
  const Unsigned power = ((Unsigned)shifted << 23) + (127u << 23);
  return p * (Floats)power;
}

// e to the power of x to about one unit in the last place: 2**n times a polynomial on [-ln 2 / 2, ln 2 / 2], the
// coefficients being those of the Taylor series. Values outside of [-87, 88] are taken to the border; NaN stays NaN.
static inline Floats exponential(Floats x) {
  x = smaller(fill(88.0f), larger(fill(-87.0f), x));
  const Floats shifted = x * 1.44269504088896341f + 12582912.0f;  // rounds to whole numbers
  const Floats n = shifted - 12582912.0f;
  const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Floats p = fill(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints power = ((Ints)shifted - (int32_t)0x4B400000 + 127) << 23;
  return p * (Floats)power;
}

template <int... I>
static inline Shorts upper_halves(Shorts a, Shorts b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}

// The upper halves of the numbers of a, then of those of b.
static inline void store_upper_halves(uint16_t* p, Floats a, Floats b) {
  constexpr auto order = std::make_integer_sequence<int, 2 * kWidth>{};
  const Shorts halves = upper_halves(reinterpret_cast<Shorts>(a), reinterpret_cast<Shorts>(b), order);
  std::memcpy(p, &halves, sizeof halves);
}

template <int... I>
static inline Floats interleave_low(Floats a, Floats b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I % 2 ? kWidth + I / 2 : I / 2)...);
}

template <int... I>
static inline Floats interleave_high(Floats a, Floats b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (kWidth / 2 + (I % 2 ? kWidth + I / 2 : I / 2))...);
}

// Transposes a square of kWidth rows: as many rounds of interleaving as kWidth has binary digits.
static inline void transpose(Floats (&rows)[kWidth]) {
  constexpr auto order = std::make_integer_sequence<int, kWidth>{};
  for (int round = 1; round < kWidth; round *= 2) {
    Floats next[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth / 2; ++i) {
      next[2 * i] = interleave_low(rows[i], rows[i + kWidth / 2], order);
      next[2 * i + 1] = interleave_high(rows[i], rows[i + kWidth / 2], order);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) rows[i] = next[i];
  }
}
