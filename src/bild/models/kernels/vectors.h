// 16 numbers at a time: one vector of AVX512, or two of AVX2. The kernels are written once, over these, but for int8
// weights where no instruction adds up four products of bytes.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVXVNNI__)
#define BILD_VNNI  // such an instruction
#endif

namespace bild {

using Halves = __m256i;  // 16 numbers of 16 bits

inline Halves load_halves(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline void store_halves(void* to, Halves value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }

#ifdef __AVX512F__

using Floats = __m512;     // 16 of float32; +, -, * and / are the compiler's
using Whole = __m512i;     // 16 of int32
using Bytes = __m512i;     // 64
using Lanes = __mmask16;   // some of 16
using Sums4 = __m512i;     // of products with numbers of four bits
constexpr int REGISTERS = 32;
constexpr int64_t MULTIPLIED = 64;  // products of bytes in a cycle, about
#ifdef __AVX512BF16__
constexpr bool MULTIPLIES_PAIRS = true;  // of bfloat16, by one instruction
#else
constexpr bool MULTIPLIES_PAIRS = false;
#endif

inline Floats same(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Floats value) { _mm512_storeu_ps(to, value); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats minus_product(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats least(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats most(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline float sum(Floats value) { return _mm512_reduce_add_ps(value); }
inline float lowest(Floats value) { return _mm512_reduce_min_ps(value); }
inline float highest(Floats value) { return _mm512_reduce_max_ps(value); }
inline Floats nearest(Floats value) { return _mm512_roundscale_ps(value, 0); }
inline Floats times_power(Floats value, Floats power) { return _mm512_scalef_ps(value, power); }

inline Whole whole(int32_t value) { return _mm512_set1_epi32(value); }
inline Whole add(Whole a, Whole b) { return _mm512_add_epi32(a, b); }
inline Whole least(Whole a, Whole b) { return _mm512_min_epi32(a, b); }
inline Whole most(Whole a, Whole b) { return _mm512_max_epi32(a, b); }
inline int32_t sum(Whole value) { return _mm512_reduce_add_epi32(value); }
inline int32_t highest(Whole value) { return _mm512_reduce_max_epi32(value); }
inline Whole to_whole(Floats value) { return _mm512_cvtps_epi32(value); }
inline Floats to_floats(Whole value) { return _mm512_cvtepi32_ps(value); }
inline Whole magnitude_bits(Floats value) {
  return _mm512_and_si512(_mm512_set1_epi32(0x7fffffff), _mm512_castps_si512(value));
}
inline void store_bytes(void* to, Whole value) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(value));
}

inline Lanes first(int64_t left) { return left >= 16 ? 0xffff : static_cast<Lanes>((1u << left) - 1); }
inline Lanes either(Lanes a, Lanes b) { return a | b; }
inline bool any(Lanes lanes) { return lanes; }
inline Lanes no_number(Floats value) { return _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q); }
inline Lanes differ(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
inline Lanes not_below(Lanes of, Floats a, Floats b) { return _mm512_mask_cmp_ps_mask(of, a, b, _CMP_NLT_UQ); }
inline Floats choose(Lanes lanes, Floats there, Floats elsewhere) {
  return _mm512_mask_mov_ps(elsewhere, lanes, there);
}
inline Lanes true_bytes(const char* from, int64_t left) {
  const __m128i bools = _mm_maskz_loadu_epi8(first(left), from);
  return _mm_test_epi8_mask(bools, bools);
}

// How many lanes there are up to the last of these.
inline int behind(Lanes lanes) { return lanes ? 32 - __builtin_clz(lanes) : 0; }

// Of 16 vectors the sum of each.
inline Floats sums_of(const Floats* of) {
  // Each step puts what is left of two vectors into one: pairs, fours, then quarters of a vector.
  __m512 two[8], four[4];
  for (int n = 0; n < 8; n++)
    two[n] = _mm512_unpacklo_ps(of[2 * n], of[2 * n + 1]) + _mm512_unpackhi_ps(of[2 * n], of[2 * n + 1]);
  for (int n = 0; n < 4; n++) {
    const __m512d a = _mm512_castps_pd(two[2 * n]), b = _mm512_castps_pd(two[2 * n + 1]);
    four[n] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) + _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  }
  const auto halved = [](__m512 a, __m512 b) {
    return _mm512_shuffle_f32x4(a, b, 0x44) + _mm512_shuffle_f32x4(a, b, 0xee);
  };
  const __m512 low = halved(four[0], four[1]), high = halved(four[2], four[3]);
  return _mm512_shuffle_f32x4(low, high, 0x88) + _mm512_shuffle_f32x4(low, high, 0xdd);
}

inline Floats widen(Halves value) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(value), 16));
}

// To the nearest bfloat16, ties to even; NaN stays NaN.
inline Halves narrow(Floats value) {
#ifdef __AVX512BF16__
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(value));
#else
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i kept = _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), no_number(value), _mm512_set1_epi32(0x7fc0));
  return _mm512_cvtepi32_epi16(kept);
#endif
}

// To each of 16 sums the products of two numbers in bfloat16.
inline Floats add_pairs(Floats sums, Bytes a, Bytes b) {
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
  const auto even = [](Bytes pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); };
  const auto odd = [](Bytes pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xffff0000u)));
  };
  return multiply_add(odd(a), odd(b), multiply_add(even(a), even(b), sums));
#endif
}

inline Floats of_float16(Halves value) { return _mm512_cvtph_ps(value); }
inline Halves to_float16(Floats value) { return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT); }

inline Floats load_some(const float* from, int64_t left) { return _mm512_maskz_loadu_ps(first(left), from); }
inline void store_some(float* to, Floats value, int64_t left) { _mm512_mask_storeu_ps(to, first(left), value); }
inline Halves load_some_halves(const uint16_t* from, int64_t left) {
  return _mm256_maskz_loadu_epi16(first(left), from);
}
inline void store_some_halves(uint16_t* to, Halves value, int64_t left) {
  _mm256_mask_storeu_epi16(to, first(left), value);
}

inline Bytes load_bytes(const void* from) { return _mm512_loadu_si512(from); }
inline Floats as_floats(Bytes value) { return _mm512_castsi512_ps(value); }
inline Bytes lower_fours(Bytes value) { return _mm512_and_si512(value, _mm512_set1_epi8(0x0f)); }
inline Bytes upper_fours(Bytes value) { return lower_fours(_mm512_srli_epi16(value, 4)); }

// Sums of products of weights without a sign, 128 too large, begin with what that adds.
//   tokens: their sum.
inline Whole first_sums(int32_t tokens) { return _mm512_set1_epi32(-128 * tokens); }
// 16 outputs, of each four weights times the same four tokens.
inline Whole add_products(Whole sums, Bytes weights, int32_t tokens) {
  return _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(tokens));
}
inline Sums4 first_sums4() { return _mm512_setzero_si512(); }
inline Sums4 add_products4(Sums4 sums, Bytes weights, int32_t tokens) { return add_products(sums, weights, tokens); }
inline Floats to_floats4(Sums4 sums) { return to_floats(sums); }

// The compiler may not keep it in memory at this point.
inline __attribute__((always_inline)) void in_register(Whole& value) { asm volatile("" : "+v"(value)); }

#else

struct Floats {
  __m256 low, high;
  Floats operator+(Floats b) const { return {low + b.low, high + b.high}; }
  Floats operator-(Floats b) const { return {low - b.low, high - b.high}; }
  Floats operator*(Floats b) const { return {low * b.low, high * b.high}; }
  Floats operator/(Floats b) const { return {low / b.low, high / b.high}; }
};
struct Whole {
  __m256i low, high;
};
using Bytes = Whole;
using Sums4 = Whole;
struct Lanes {
  __m256 low, high;  // all bits of those that are meant
};
constexpr int REGISTERS = 16;
constexpr int64_t MULTIPLIED = 16;
constexpr bool MULTIPLIES_PAIRS = false;

inline Floats same(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Floats value) {
  _mm256_storeu_ps(to, value.low);
  _mm256_storeu_ps(to + 8, value.high);
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats minus_product(Floats a, Floats b, Floats c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
inline Floats least(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Floats most(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }

// Of four numbers the first, after the others have been put to it.
template <class Combine>
inline float reduce(__m256 value, Combine combine) {
  __m128 four = combine(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  four = combine(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(combine(four, _mm_movehdup_ps(four)));
}
inline float sum(Floats value) {
  return reduce(value.low + value.high, [](__m128 a, __m128 b) { return a + b; });
}
inline float lowest(Floats value) { return reduce(_mm256_min_ps(value.low, value.high), _mm_min_ps); }
inline float highest(Floats value) { return reduce(_mm256_max_ps(value.low, value.high), _mm_max_ps); }
inline Floats nearest(Floats value) {
  constexpr int way = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(value.low, way), _mm256_round_ps(value.high, way)};
}

inline Whole whole(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline Whole add(Whole a, Whole b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline Whole least(Whole a, Whole b) { return {_mm256_min_epi32(a.low, b.low), _mm256_min_epi32(a.high, b.high)}; }
inline Whole most(Whole a, Whole b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }

template <class Combine>
inline int32_t reduce(__m256i value, Combine combine) {
  __m128i four = combine(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
  four = combine(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(combine(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline int32_t sum(Whole value) { return reduce(_mm256_add_epi32(value.low, value.high), _mm_add_epi32); }
inline int32_t highest(Whole value) { return reduce(_mm256_max_epi32(value.low, value.high), _mm_max_epi32); }
inline Whole to_whole(Floats value) { return {_mm256_cvtps_epi32(value.low), _mm256_cvtps_epi32(value.high)}; }
inline Floats to_floats(Whole value) { return {_mm256_cvtepi32_ps(value.low), _mm256_cvtepi32_ps(value.high)}; }
inline Whole magnitude_bits(Floats value) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(magnitude, _mm256_castps_si256(value.low)),
          _mm256_and_si256(magnitude, _mm256_castps_si256(value.high))};
}
// Two to a power from -126 on: the exponent of a float32.
inline Floats times_power(Floats value, Floats power) {
  const Whole exponent = add(to_whole(power), whole(127));
  return {value.low * _mm256_castsi256_ps(_mm256_slli_epi32(exponent.low, 23)),
          value.high * _mm256_castsi256_ps(_mm256_slli_epi32(exponent.high, 23))};
}
// Of each 32 bits the lower 16, which may have no others but copies of a sign.
inline Halves lower_halves(Whole value) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(value.low, value.high), 0xd8);
}
inline void store_bytes(void* to, Whole value) {
  const __m256i halves = lower_halves(value);
  const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(halves, halves), 0xd8);
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm256_castsi256_si128(bytes));
}

inline Lanes first(int64_t left) {
  const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i end = _mm256_set1_epi32(static_cast<int32_t>(std::min<int64_t>(left, 16)));
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(end, places)),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(end, _mm256_add_epi32(places, _mm256_set1_epi32(8))))};
}
inline Lanes either(Lanes a, Lanes b) { return {_mm256_or_ps(a.low, b.low), _mm256_or_ps(a.high, b.high)}; }
inline bool any(Lanes lanes) { return _mm256_movemask_ps(_mm256_or_ps(lanes.low, lanes.high)); }
inline Lanes no_number(Floats value) {
  return {_mm256_cmp_ps(value.low, value.low, _CMP_UNORD_Q), _mm256_cmp_ps(value.high, value.high, _CMP_UNORD_Q)};
}
inline Lanes differ(Floats a, Floats b) {
  return {_mm256_cmp_ps(a.low, b.low, _CMP_NEQ_UQ), _mm256_cmp_ps(a.high, b.high, _CMP_NEQ_UQ)};
}
inline Lanes not_below(Lanes of, Floats a, Floats b) {
  return {_mm256_and_ps(of.low, _mm256_cmp_ps(a.low, b.low, _CMP_NLT_UQ)),
          _mm256_and_ps(of.high, _mm256_cmp_ps(a.high, b.high, _CMP_NLT_UQ))};
}
inline Floats choose(Lanes lanes, Floats there, Floats elsewhere) {
  return {_mm256_blendv_ps(elsewhere.low, there.low, lanes.low),
          _mm256_blendv_ps(elsewhere.high, there.high, lanes.high)};
}
inline Lanes true_bytes(const char* from, int64_t left) {
  char bools[16] = {};
  std::memcpy(bools, from, std::min<int64_t>(left, 16));
  const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bools));
  const __m128i set = _mm_andnot_si128(_mm_cmpeq_epi8(sixteen, _mm_setzero_si128()), _mm_set1_epi8(-1));
  return {_mm256_castsi256_ps(_mm256_cvtepi8_epi32(set)),
          _mm256_castsi256_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(set, 8)))};
}

inline int behind(Lanes lanes) {
  const int bits = _mm256_movemask_ps(lanes.low) | _mm256_movemask_ps(lanes.high) << 8;
  return bits ? 32 - __builtin_clz(static_cast<unsigned>(bits)) : 0;
}

inline Floats sums_of(const Floats* of) {
  const auto eight = [](const Floats* of) {
    __m256 one[8], two[4], four[2];
    for (int n = 0; n < 8; n++) one[n] = of[n].low + of[n].high;
    for (int n = 0; n < 4; n++)
      two[n] = _mm256_unpacklo_ps(one[2 * n], one[2 * n + 1]) + _mm256_unpackhi_ps(one[2 * n], one[2 * n + 1]);
    for (int n = 0; n < 2; n++) {
      const __m256d a = _mm256_castps_pd(two[2 * n]), b = _mm256_castps_pd(two[2 * n + 1]);
      four[n] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b)) + _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
    return _mm256_permute2f128_ps(four[0], four[1], 0x20) + _mm256_permute2f128_ps(four[0], four[1], 0x31);
  };
  return {eight(of), eight(of + 8)};
}

inline Floats widen(Halves value) {
  const auto wide = [](__m128i eight) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
  };
  return {wide(_mm256_castsi256_si128(value)), wide(_mm256_extracti128_si256(value, 1))};
}

inline __m256i narrow_eight(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i none = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7fc0), none);
}
inline Halves narrow(Floats value) {
  const __m256i both = _mm256_packus_epi32(narrow_eight(value.low), narrow_eight(value.high));
  return _mm256_permute4x64_epi64(both, 0xd8);
}

inline Floats add_pairs(Floats sums, Bytes a, Bytes b) {
  const auto even = [](__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); };
  const auto odd = [](__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(0xffff0000u)));
  };
  const auto eight = [&](__m256 sum, __m256i a, __m256i b) {
    return _mm256_fmadd_ps(odd(a), odd(b), _mm256_fmadd_ps(even(a), even(b), sum));
  };
  return {eight(sums.low, a.low, b.low), eight(sums.high, a.high, b.high)};
}

inline Floats of_float16(Halves value) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(value)), _mm256_cvtph_ps(_mm256_extracti128_si256(value, 1))};
}
inline Halves to_float16(Floats value) {
  return _mm256_set_m128i(_mm256_cvtps_ph(value.high, _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(value.low, _MM_FROUND_TO_NEAREST_INT));
}

inline Floats load_some(const float* from, int64_t left) {
  if (left >= 16) return load(from);
  const Lanes there = first(left);
  return {_mm256_maskload_ps(from, _mm256_castps_si256(there.low)),
          _mm256_maskload_ps(from + 8, _mm256_castps_si256(there.high))};
}
inline void store_some(float* to, Floats value, int64_t left) {
  if (left >= 16) return store(to, value);
  const Lanes there = first(left);
  _mm256_maskstore_ps(to, _mm256_castps_si256(there.low), value.low);
  _mm256_maskstore_ps(to + 8, _mm256_castps_si256(there.high), value.high);
}
inline Halves load_some_halves(const uint16_t* from, int64_t left) {
  if (left >= 16) return load_halves(from);
  uint16_t halves[16] = {};
  std::memcpy(halves, from, 2 * left);
  return load_halves(halves);
}
inline void store_some_halves(uint16_t* to, Halves value, int64_t left) {
  if (left >= 16) return store_halves(to, value);
  uint16_t halves[16];
  store_halves(halves, value);
  std::memcpy(to, halves, 2 * left);
}

inline Bytes load_bytes(const void* from) {
  const auto* at = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
inline Floats as_floats(Bytes value) { return {_mm256_castsi256_ps(value.low), _mm256_castsi256_ps(value.high)}; }
inline Bytes lower_fours(Bytes value) {
  const __m256i lower = _mm256_set1_epi8(0x0f);
  return {_mm256_and_si256(value.low, lower), _mm256_and_si256(value.high, lower)};
}
inline Bytes upper_fours(Bytes value) {
  return lower_fours({_mm256_srli_epi16(value.low, 4), _mm256_srli_epi16(value.high, 4)});
}

#ifdef BILD_VNNI
inline Whole first_sums(int32_t tokens) { return whole(-128 * tokens); }
inline Whole add_products(Whole sums, Bytes weights, int32_t tokens) {
  const __m256i four = _mm256_set1_epi32(tokens);
  return {_mm256_dpbusd_avx_epi32(sums.low, weights.low, four), _mm256_dpbusd_avx_epi32(sums.high, weights.high, four)};
}
#endif
// Of weights from 0 to 15 the pairs of 32 inputs fit into 16 bits together.
inline Sums4 first_sums4() { return whole(0); }
inline Sums4 add_products4(Sums4 sums, Bytes weights, int32_t tokens) {
  const __m256i four = _mm256_set1_epi32(tokens);
  return {_mm256_add_epi16(sums.low, _mm256_maddubs_epi16(weights.low, four)),
          _mm256_add_epi16(sums.high, _mm256_maddubs_epi16(weights.high, four))};
}
inline Floats to_floats4(Sums4 sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  return to_floats({_mm256_madd_epi16(sums.low, ones), _mm256_madd_epi16(sums.high, ones)});
}

inline __attribute__((always_inline)) void in_register(__m256i& value) { asm volatile("" : "+x"(value)); }
inline __attribute__((always_inline)) void in_register(Whole& value) {
  in_register(value.low);
  in_register(value.high);
}

#endif

// e^x of numbers not above 0.
inline Floats exponential(Floats x) {
  x = most(x, same(-87.0f));
  const Floats whole = nearest(x * same(1.44269504f));
  Floats rest = minus_product(whole, same(0.693359375f), x);
  rest = minus_product(whole, same(-2.12194440e-4f), rest);
  Floats total = same(1.9875691500e-4f);
  for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    total = multiply_add(total, rest, same(next));
  total = multiply_add(total, rest * rest, rest + same(1.0f));
  return times_power(total, whole);
}

// 16 numbers, or as many as are left, in bfloat16 or float32.
inline Floats read(const void* from, int64_t index, bool half, int64_t left = 16) {
  return half ? widen(load_some_halves(static_cast<const uint16_t*>(from) + index, left))
              : load_some(static_cast<const float*>(from) + index, left);
}

inline void write(void* to, int64_t index, bool half, Floats value, int64_t left = 16) {
  if (half)
    store_some_halves(static_cast<uint16_t*>(to) + index, narrow(value), left);
  else
    store_some(static_cast<float*>(to) + index, value, left);
}

}  // namespace bild
