// lanes.h in AVX-512 instructions.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace mixaq {

using Floats = __m512;
using Ints = __m512i;
using Bytes = __m128i;
using Mask = __mmask16;
using Shift = __m128i;
constexpr int kRegisters = 32;
constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

inline Floats floats(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* target, Floats x) { _mm512_storeu_ps(target, x); }
inline void store_past_cache(float* target, Floats x) { _mm512_stream_ps(target, x); }
inline void store_first(float* target, Floats x, int64_t count) {
  _mm512_mask_storeu_ps(target, static_cast<__mmask16>((1u << count) - 1), x);
}
inline Floats add(Floats x, Floats y) { return _mm512_add_ps(x, y); }
inline Floats sub(Floats x, Floats y) { return _mm512_sub_ps(x, y); }
inline Floats mul(Floats x, Floats y) { return _mm512_mul_ps(x, y); }
inline Floats div(Floats x, Floats y) { return _mm512_div_ps(x, y); }
inline Floats root(Floats x) { return _mm512_sqrt_ps(x); }
inline Floats fma(Floats x, Floats y, Floats z) { return _mm512_fmadd_ps(x, y, z); }
inline Floats fms(Floats x, Floats y, Floats z) { return _mm512_fmsub_ps(x, y, z); }
inline Floats max(Floats x, Floats y) { return _mm512_max_ps(x, y); }
inline Floats min(Floats x, Floats y) { return _mm512_min_ps(x, y); }
inline Floats magnitude(Floats x) { return _mm512_abs_ps(x); }
inline Floats magnitude_up_to(Floats x, Floats limit) {
  constexpr int kSmallerMagnitude = 0b1010;
  return _mm512_range_ps(x, limit, kSmallerMagnitude);
}
inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, kNearest); }
inline Floats mantissa(Floats x) { return _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src); }
inline Floats exponent(Floats x) { return _mm512_getexp_ps(x); }
inline float total(Floats x) { return _mm512_reduce_add_ps(x); }
inline Floats look_up(Floats table, Ints index) { return _mm512_permutexvar_ps(index, table); }

inline Ints ints(int32_t x) { return _mm512_set1_epi32(x); }
inline Ints load_ints(const void* x) { return _mm512_loadu_si512(x); }
inline void store(void* target, Ints x) { _mm512_storeu_si512(target, x); }
inline Ints add(Ints x, Ints y) { return _mm512_add_epi32(x, y); }
inline Ints sub(Ints x, Ints y) { return _mm512_sub_epi32(x, y); }
inline Ints mul(Ints x, Ints y) { return _mm512_mullo_epi32(x, y); }
inline Ints max(Ints x, Ints y) { return _mm512_max_epi32(x, y); }
inline Ints both(Ints x, Ints y) { return _mm512_and_si512(x, y); }
inline Ints either(Ints x, Ints y) { return _mm512_or_si512(x, y); }
template <int Count>
inline Ints shift_left(Ints x) { return _mm512_slli_epi32(x, Count); }
template <int Count>
inline Ints shift_right(Ints x) { return _mm512_srli_epi32(x, Count); }
template <int Count>
inline Ints shift_right_signed(Ints x) { return _mm512_srai_epi32(x, Count); }
inline Shift shift_by(int32_t count) { return _mm_cvtsi32_si128(count); }
inline Ints shift_left(Ints x, Shift by) { return _mm512_sll_epi32(x, by); }

inline Mask is_odd(Ints x) { return _mm512_test_epi32_mask(x, _mm512_set1_epi32(1)); }
inline Mask less(Ints x, Ints y) { return _mm512_cmplt_epi32_mask(x, y); }
inline Ints select(Mask mask, Ints yes, Ints no) { return _mm512_mask_blend_epi32(mask, no, yes); }
inline Ints sub_where(Mask mask, Ints x, Ints y) { return _mm512_maskz_sub_epi32(mask, x, y); }

inline Ints bits(Floats x) { return _mm512_castps_si512(x); }
inline Floats from_bits(Ints x) { return _mm512_castsi512_ps(x); }
inline Ints to_ints(Floats x) { return _mm512_cvtps_epi32(x); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }

inline Ints from_bytes(const uint8_t* x) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
inline Ints from_quarters(Bytes a, Bytes b, Bytes c, Bytes d) {
  const __m512i x = _mm512_inserti32x4(_mm512_inserti32x4(_mm512_castsi128_si512(a), b, 1), c, 2);
  return _mm512_inserti32x4(x, d, 3);
}
inline Bytes load_bytes(const uint8_t* x) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)); }
inline Bytes low_bytes(Ints x) { return _mm512_cvtepi32_epi8(x); }
inline void store(uint8_t* target, Bytes x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(target), x); }
inline Ints all_bytes(int8_t x) { return _mm512_set1_epi8(x); }
inline Ints sub_bytes(Ints x, Ints y) { return _mm512_sub_epi8(x, y); }
inline int32_t sum_of_bytes(const uint8_t* x, int64_t count) {
  __m512i sums = _mm512_setzero_si512();
  for (int64_t k = 0; k < count; k += 64) {
    const __mmask64 mask = count - k >= 64 ? ~0ull : (1ull << (count - k)) - 1;
    sums = _mm512_add_epi64(sums, _mm512_sad_epu8(_mm512_maskz_loadu_epi8(mask, x + k), _mm512_setzero_si512()));
  }
  return static_cast<int32_t>(_mm512_reduce_add_epi64(sums));
}
// The upper half of each of the 16 integers of x, then of y.
inline Ints pack_upper_halves(Ints x, Ints y) {
  const __m256i first = _mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16));
  const __m256i second = _mm512_cvtepi32_epi16(_mm512_srli_epi32(y, 16));
  return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// 32 codes, x before y, of integers of which those below 0 become 0.
inline void store_codes(uint8_t* target, Ints x, Ints y) {
  const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);  // packing takes turns: 4 of x, 4 of y, 4 of x ...
  const __m256i bytes = _mm512_cvtepi16_epi8(_mm512_packus_epi32(x, y));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm256_permutevar8x32_epi32(bytes, order));
}

// sum + products of 4 unsigned bytes with 4 signed ones.
inline Ints add_products(Ints sum, Ints unsigned_bytes, Ints signed_bytes) {
  return _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes);
}

inline Floats interleave_low(Floats x, Floats y) { return _mm512_unpacklo_ps(x, y); }
inline Floats interleave_high(Floats x, Floats y) { return _mm512_unpackhi_ps(x, y); }
inline Floats interleave_low_pairs(Floats x, Floats y) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
}
inline Floats interleave_high_pairs(Floats x, Floats y) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
}
inline Floats from_fours(const float* a, const float* b, const float* c, const float* d) {
  Floats x = _mm512_castps128_ps512(_mm_loadu_ps(a));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(b), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(c), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(d), 3);
}
// Fours 2, 3, 0, 1 of four, and 1, 0, 3, 2.
inline Floats swap_halves(Floats x) { return _mm512_shuffle_f32x4(x, x, 0b01001110); }
inline Floats swap_fours(Floats x) { return _mm512_shuffle_f32x4(x, x, 0b10110001); }
// Lane `index` of each four, in all of its lanes.
inline Floats spread_in_fours(Floats x, int index) { return _mm512_permutevar_ps(x, _mm512_set1_epi32(index)); }

}  // namespace mixaq
