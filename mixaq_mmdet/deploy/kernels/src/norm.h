// LayerNorm of one row, to codes or to float.
#pragma once
#include "simd.h"

namespace mixaq {

struct Moments {
  __m512 mean, scale;
};

inline Moments moments(const float* x, int64_t width, float epsilon) {
  __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(x + c));
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / width);
  for (int64_t c = 0; c < width; c += 16) {
    const __m512 d = _mm512_sub_ps(_mm512_loadu_ps(x + c), mean);
    squares = _mm512_fmadd_ps(d, d, squares);
  }
  const float variance = _mm512_reduce_add_ps(squares) / width;
  return {mean, _mm512_set1_ps(1.0f / __builtin_sqrtf(variance + epsilon))};
}

// gamma and beta are divided by the step of the grid, beta shifted by its zero point.
inline void norm_to_codes(const float* x, int64_t width, const float* gamma, const float* beta, float epsilon,
                          __m512 top, uint8_t* out) {
  const Moments m = moments(x, width, epsilon);
  for (int64_t c = 0; c < width; c += 16) {
    const __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + c), m.mean), m.scale);
    const __m512 z = _mm512_fmadd_ps(y, _mm512_loadu_ps(gamma + c), _mm512_loadu_ps(beta + c));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + c), to_codes(z, top));
  }
}

// For a step of the row's own, neither gamma nor beta is divided by it; beta holds the offset before rounding.
inline void norm_to_codes(const float* x, int64_t width, const float* gamma, const float* beta, float epsilon,
                          __m512 top, float inverse_step, float zero, uint8_t* out) {
  const Moments m = moments(x, width, epsilon);
  for (int64_t c = 0; c < width; c += 16) {
    const __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + c), m.mean), m.scale);
    const __m512 z = _mm512_fmadd_ps(y, _mm512_loadu_ps(gamma + c), _mm512_loadu_ps(beta + c));
    const __m512 code = _mm512_fmadd_ps(z, _mm512_set1_ps(inverse_step), _mm512_set1_ps(zero));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + c), to_codes(code, top));
  }
}

inline void norm_to_float(const float* x, int64_t width, const float* gamma, const float* beta, float epsilon,
                          float* out) {
  const Moments m = moments(x, width, epsilon);
  for (int64_t c = 0; c < width; c += 16) {
    const __m512 y = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + c), m.mean), m.scale);
    _mm512_storeu_ps(out + c, _mm512_fmadd_ps(y, _mm512_loadu_ps(gamma + c), _mm512_loadu_ps(beta + c)));
  }
}

}  // namespace mixaq
