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

// 2^x for x <= 0, relative error below 2e-7.
inline __m512 exp2_negative(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, kNearest);
  const __m512 f = _mm512_sub_ps(x, whole);
  __m512 p = _mm512_set1_ps(1.340043217e-03f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.676037098e-03f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550327214e-02f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402210736e-01f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931472067e-01f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.000000075e+00f));
  return _mm512_scalef_ps(p, whole);
}

// x (1 + erf(x / sqrt 2)) / 2 with an absolute error below 4e-6: erf as an odd polynomial on |x| <= 4.75, beyond which
// it is 1. In powers of u = 2 (x / 4.75)^2 - 1, whose terms do not cancel as those in powers of x do.
inline __m512 gelu(__m512 x) {
  const __m512 reach = _mm512_set1_ps(4.75f);
  const __m512 y = _mm512_min_ps(_mm512_max_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), reach)), reach);
  const __m512 u = _mm512_fmadd_ps(_mm512_mul_ps(y, y), _mm512_set1_ps(8.864265928e-02f), _mm512_set1_ps(-1.0f));
  __m512 p = _mm512_set1_ps(1.280239667e-03f);
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-3.771036165e-03f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(5.016025156e-03f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-7.168815937e-03f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(1.340559125e-02f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-2.164955996e-02f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(3.040286526e-02f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-4.056822881e-02f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(5.323525891e-02f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(-7.366754860e-02f));
  p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(1.487482935e-01f));
  return _mm512_mul_ps(x, _mm512_fmadd_ps(p, y, _mm512_set1_ps(0.5f)));
}

}  // namespace mixaq
