// Short vector functions.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace mixaq {

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// Codes 0 .. top of values that are already divided by the step and shifted by the zero point.
inline __m128i to_codes(__m512 x, __m512 top) {
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_setzero_ps()), top);
  return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));  // rounds half to even, as torch.round
}

// Such codes as 32-bit integers, those below 0 yet to be cut by `store_codes`. NaN becomes 0.
inline __m512i rounded(__m512 x, __m512 top) { return _mm512_cvtps_epi32(_mm512_min_ps(top, x)); }

inline void store_codes(uint8_t* target, __m512i x) {
  const __m512i zero = _mm512_setzero_si512();
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm512_cvtepi32_epi8(_mm512_max_epi32(x, zero)));
}

// 32 codes, x before y.
inline void store_codes(uint8_t* target, __m512i x, __m512i y) {
  const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);  // packing takes turns: 4 of x, 4 of y, 4 of x ...
  const __m256i bytes = _mm512_cvtepi16_epi8(_mm512_packus_epi32(x, y));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm256_permutevar8x32_epi32(bytes, order));
}

// 2^x for x <= 0, relative error below 2e-7; 2^-100 where x is below -100, so that nothing becomes
// denormal.
inline __m512 exp2_negative(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
  const __m512 integer = _mm512_set1_ps(3 << 22);  // in the lowest bits of its sum with a small number is an integer
  const __m512 whole = _mm512_add_ps(x, integer);
  const __m512 f = _mm512_sub_ps(x, _mm512_sub_ps(whole, integer));
  __m512 p = _mm512_set1_ps(1.340043217e-03f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.676037098e-03f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550327214e-02f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402210736e-01f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931472067e-01f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.000000075e+00f));
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(whole), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

// Columns 0 to 3 of 16 rows.
inline void four_columns(const float* rows, int64_t stride, __m512 (&columns)[4]) {
  __m512 r[4];  // lane l of r[i] is row 4 l + i
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto four = [&](int lane) { return _mm_loadu_ps(rows + (4 * lane + i) * stride); };
    r[i] = _mm512_castps128_ps512(four(0));
    r[i] = _mm512_insertf32x4(r[i], four(1), 1);
    r[i] = _mm512_insertf32x4(r[i], four(2), 2);
    r[i] = _mm512_insertf32x4(r[i], four(3), 3);
  }
  const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
  const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
  const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
  const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
  columns[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
  columns[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
  columns[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
  columns[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
}

// Reduces each of four vectors to one number: lane r of every four lanes holds that of vector r.
template <class Combine>
inline __m512 reduce_four(const __m512 (&v)[4], const Combine& combine) {
  const auto two = [&](__m512 a, __m512 b) {
    return _mm512_castps_pd(combine(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
  };
  const __m512d low = two(v[0], v[1]), high = two(v[2], v[3]);
  const __m512d even = _mm512_unpacklo_pd(low, high), odd = _mm512_unpackhi_pd(low, high);
  __m512 all = combine(_mm512_castpd_ps(even), _mm512_castpd_ps(odd));
  all = combine(all, _mm512_shuffle_f32x4(all, all, 0b01001110));
  return combine(all, _mm512_shuffle_f32x4(all, all, 0b10110001));
}

// What `reduce_four` returned for vector r, in all lanes.
inline __m512 one_of_four(__m512 reduced, int r) { return _mm512_permutevar_ps(reduced, _mm512_set1_epi32(r)); }

// Absolute error below 3e-7, of positive normal numbers.
inline __m512 log2_positive(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f), m = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
  const __m512 t = _mm512_div_ps(_mm512_sub_ps(m, one), _mm512_add_ps(m, one)), square = _mm512_mul_ps(t, t);
  __m512 p = _mm512_set1_ps(1.0f / 11);  // artanh
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(1.0f / 9));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(1.0f / 7));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(1.0f / 5));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(1.0f / 3));
  p = _mm512_fmadd_ps(p, square, one);
  return _mm512_fmadd_ps(_mm512_mul_ps(p, t), _mm512_set1_ps(2.885390082f), _mm512_getexp_ps(x));
}

}  // namespace mixaq
