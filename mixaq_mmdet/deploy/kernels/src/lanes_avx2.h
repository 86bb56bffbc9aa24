// lanes.h in AVX2 instructions: each vector is two registers, the lower 8 lanes and the upper 8.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace mixaq {

struct Floats {
  __m256 low, high;
};
struct Ints {
  __m256i low, high;
};
using Bytes = __m128i;
using Mask = Ints;  // all bits of a lane, or none
using Shift = __m128i;
constexpr int kRegisters = 8;  // of 16 lanes

inline __m256i load_half(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }
inline void store_half(void* target, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(target), x); }

inline Floats floats(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
inline void store(float* target, Floats x) {
  _mm256_storeu_ps(target, x.low);
  _mm256_storeu_ps(target + 8, x.high);
}
inline void store_past_cache(float* target, Floats x) {
  _mm256_stream_ps(target, x.low);
  _mm256_stream_ps(target + 8, x.high);
}
inline void store_first(float* target, Floats x, int64_t count) {
  float all[16];
  store(all, x);
  std::memcpy(target, all, count * sizeof(float));
}
inline Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.low, y.low), _mm256_add_ps(x.high, y.high)}; }
inline Floats sub(Floats x, Floats y) { return {_mm256_sub_ps(x.low, y.low), _mm256_sub_ps(x.high, y.high)}; }
inline Floats mul(Floats x, Floats y) { return {_mm256_mul_ps(x.low, y.low), _mm256_mul_ps(x.high, y.high)}; }
inline Floats div(Floats x, Floats y) { return {_mm256_div_ps(x.low, y.low), _mm256_div_ps(x.high, y.high)}; }
inline Floats root(Floats x) { return {_mm256_sqrt_ps(x.low), _mm256_sqrt_ps(x.high)}; }
inline Floats fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.low, y.low, z.low), _mm256_fmadd_ps(x.high, y.high, z.high)};
}
inline Floats fms(Floats x, Floats y, Floats z) {
  return {_mm256_fmsub_ps(x.low, y.low, z.low), _mm256_fmsub_ps(x.high, y.high, z.high)};
}
inline Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.low, y.low), _mm256_max_ps(x.high, y.high)}; }
inline Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.low, y.low), _mm256_min_ps(x.high, y.high)}; }
inline Floats magnitude(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline Floats magnitude_up_to(Floats x, Floats limit) { return min(magnitude(x), limit); }
inline Floats nearest(Floats x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, kNearest), _mm256_round_ps(x.high, kNearest)};
}
inline float total(Floats x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline Ints ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints load_ints(const void* x) { return {load_half(x), load_half(static_cast<const char*>(x) + 32)}; }
inline void store(void* target, Ints x) {
  store_half(target, x.low);
  store_half(static_cast<char*>(target) + 32, x.high);
}
inline Ints add(Ints x, Ints y) { return {_mm256_add_epi32(x.low, y.low), _mm256_add_epi32(x.high, y.high)}; }
inline Ints sub(Ints x, Ints y) { return {_mm256_sub_epi32(x.low, y.low), _mm256_sub_epi32(x.high, y.high)}; }
inline Ints mul(Ints x, Ints y) { return {_mm256_mullo_epi32(x.low, y.low), _mm256_mullo_epi32(x.high, y.high)}; }
inline Ints max(Ints x, Ints y) { return {_mm256_max_epi32(x.low, y.low), _mm256_max_epi32(x.high, y.high)}; }
inline Ints both(Ints x, Ints y) { return {_mm256_and_si256(x.low, y.low), _mm256_and_si256(x.high, y.high)}; }
inline Ints either(Ints x, Ints y) { return {_mm256_or_si256(x.low, y.low), _mm256_or_si256(x.high, y.high)}; }
template <int Count>
inline Ints shift_left(Ints x) { return {_mm256_slli_epi32(x.low, Count), _mm256_slli_epi32(x.high, Count)}; }
template <int Count>
inline Ints shift_right(Ints x) { return {_mm256_srli_epi32(x.low, Count), _mm256_srli_epi32(x.high, Count)}; }
template <int Count>
inline Ints shift_right_signed(Ints x) {
  return {_mm256_srai_epi32(x.low, Count), _mm256_srai_epi32(x.high, Count)};
}
inline Shift shift_by(int32_t count) { return _mm_cvtsi32_si128(count); }
inline Ints shift_left(Ints x, Shift by) { return {_mm256_sll_epi32(x.low, by), _mm256_sll_epi32(x.high, by)}; }

inline Mask less(Ints x, Ints y) { return {_mm256_cmpgt_epi32(y.low, x.low), _mm256_cmpgt_epi32(y.high, x.high)}; }
inline Mask is_odd(Ints x) { return shift_right_signed<31>(shift_left<31>(x)); }
inline Ints select(Mask mask, Ints yes, Ints no) {
  return {_mm256_blendv_epi8(no.low, yes.low, mask.low), _mm256_blendv_epi8(no.high, yes.high, mask.high)};
}
inline Ints sub_where(Mask mask, Ints x, Ints y) { return both(mask, sub(x, y)); }

inline Ints bits(Floats x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
inline Floats from_bits(Ints x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
inline Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline Floats mantissa(Floats x) { return from_bits(either(both(bits(x), ints(0x7fffff)), ints(0x3f800000))); }
inline Floats exponent(Floats x) { return to_floats(sub(shift_right<23>(bits(x)), ints(127))); }
inline Floats look_up(Floats table, Ints index) {
  const auto half = [&](__m256i i) {  // a permutation sees three bits of an index, a blend the topmost one
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, i), _mm256_permutevar8x32_ps(table.high, i), upper);
  };
  return {half(index.low), half(index.high)};
}

inline Ints from_bytes(const uint8_t* x) {
  const auto eight = [](const uint8_t* at) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
  };
  return {eight(x), eight(x + 8)};
}
// Of integers 0 .. 2^16 - 1, in their order.
inline __m256i low_halves(Ints x) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(x.low, x.high), 0b11011000);
}
inline Ints from_quarters(Bytes a, Bytes b, Bytes c, Bytes d) {
  return {_mm256_set_m128i(b, a), _mm256_set_m128i(d, c)};
}
inline Bytes load_bytes(const uint8_t* x) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)); }
inline Bytes low_bytes(Ints x) {
  const __m256i halves = low_halves(x);
  return _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}
inline void store(uint8_t* target, Bytes x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(target), x); }
inline Ints all_bytes(int8_t x) { return {_mm256_set1_epi8(x), _mm256_set1_epi8(x)}; }
inline Ints sub_bytes(Ints x, Ints y) { return {_mm256_sub_epi8(x.low, y.low), _mm256_sub_epi8(x.high, y.high)}; }
inline int32_t sum_of_bytes(const uint8_t* x, int64_t count) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i sums = zero;
  for (; count >= 32; x += 32, count -= 32) sums = _mm256_add_epi64(sums, _mm256_sad_epu8(load_half(x), zero));
  uint8_t rest[32] = {};
  std::memcpy(rest, x, count);
  sums = _mm256_add_epi64(sums, _mm256_sad_epu8(load_half(rest), zero));
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  return static_cast<int32_t>(_mm_cvtsi128_si64(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two))));
}

// The upper half of each of the 16 integers of x, then of y.
inline Ints pack_upper_halves(Ints x, Ints y) { return {low_halves(shift_right<16>(x)), low_halves(shift_right<16>(y))}; }

// 32 codes, x before y, of integers of which those below 0 become 0.
inline void store_codes(uint8_t* target, Ints x, Ints y) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing takes turns: 4 of a register, 4 of the next
  const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(x.low, x.high), _mm256_packs_epi32(y.low, y.high));
  store_half(target, _mm256_permutevar8x32_epi32(bytes, order));
}

// sum + products of 4 unsigned bytes with 4 signed ones.
inline __m256i add_products(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
#ifdef __AVXVNNI__
  return _mm256_dpbusd_avx_epi32(sum, unsigned_bytes, signed_bytes);
#else
  // sums of two products are cut to 16 bits: 128 times -128 just fits twice, so that halves of the bytes are exact
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i half = _mm256_and_si256(_mm256_srli_epi16(unsigned_bytes, 1), _mm256_set1_epi8(0x7f));
  const __m256i rest = _mm256_sub_epi8(unsigned_bytes, half);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(half, signed_bytes), ones));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(rest, signed_bytes), ones));
#endif
}
inline Ints add_products(Ints sum, Ints unsigned_bytes, Ints signed_bytes) {
  return {add_products(sum.low, unsigned_bytes.low, signed_bytes.low),
          add_products(sum.high, unsigned_bytes.high, signed_bytes.high)};
}

inline Floats interleave_low(Floats x, Floats y) {
  return {_mm256_unpacklo_ps(x.low, y.low), _mm256_unpacklo_ps(x.high, y.high)};
}
inline Floats interleave_high(Floats x, Floats y) {
  return {_mm256_unpackhi_ps(x.low, y.low), _mm256_unpackhi_ps(x.high, y.high)};
}
inline __m256 low_pairs(__m256 x, __m256 y) {
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(x), _mm256_castps_pd(y)));
}
inline __m256 high_pairs(__m256 x, __m256 y) {
  return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(x), _mm256_castps_pd(y)));
}
inline Floats interleave_low_pairs(Floats x, Floats y) { return {low_pairs(x.low, y.low), low_pairs(x.high, y.high)}; }
inline Floats interleave_high_pairs(Floats x, Floats y) {
  return {high_pairs(x.low, y.low), high_pairs(x.high, y.high)};
}
inline Floats from_fours(const float* a, const float* b, const float* c, const float* d) {
  return {_mm256_loadu2_m128(b, a), _mm256_loadu2_m128(d, c)};
}
// Fours 2, 3, 0, 1 of four, and 1, 0, 3, 2.
inline Floats swap_halves(Floats x) { return {x.high, x.low}; }
inline Floats swap_fours(Floats x) {
  return {_mm256_permute2f128_ps(x.low, x.low, 1), _mm256_permute2f128_ps(x.high, x.high, 1)};
}
// Lane `index` of each four, in all of its lanes.
inline Floats spread_in_fours(Floats x, int index) {
  const __m256i lane = _mm256_set1_epi32(index);
  return {_mm256_permutevar_ps(x.low, lane), _mm256_permutevar_ps(x.high, lane)};
}

}  // namespace mixaq
