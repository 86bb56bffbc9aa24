// Pairs of bf16 and their dot products. CPUs without these instructions keep the same values and multiply in float.
#pragma once
#include "simd.h"

namespace mixaq {

#ifdef __AVX512BF16__

// bf16 of the 16 values of `first`, then of `second`.
inline __m512i to_bf16(__m512 first, __m512 second) { return (__m512i)_mm512_cvtne2ps_pbh(second, first); }

// sum + x[2 i] y[2 i] + x[2 i + 1] y[2 i + 1] for each i of 16.
inline __m512 dot_bf16(__m512 sum, __m512i x, __m512i y) {
  return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
}

#else

inline __m512i to_bf16(__m512 first, __m512 second) {
  const auto rounded = [](__m512 x) {  // half to even, like the instruction
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i above = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(above, 16));
  };
  return _mm512_inserti64x4(_mm512_castsi256_si512(rounded(first)), rounded(second), 1);
}

inline __m512 dot_bf16(__m512 sum, __m512i x, __m512i y) {
  const auto even = [](__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); };
  const auto odd = [](__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  };
  return _mm512_fmadd_ps(even(x), even(y), _mm512_fmadd_ps(odd(x), odd(y), sum));
}

#endif

inline __m512 rounded_to_bf16(__m512 x) {
  const __m256i half = _mm512_castsi512_si256(to_bf16(x, x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

}  // namespace mixaq
