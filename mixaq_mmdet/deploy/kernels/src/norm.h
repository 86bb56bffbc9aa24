// LayerNorm of one row, to codes or to float.
#pragma once
#include "simd.h"

namespace mixaq {

struct Moments {
  Floats mean, scale;
};

inline Moments moments(const float* x, int64_t width, float epsilon) {
  Floats sum = floats(0), squares = floats(0);
  for (int64_t c = 0; c < width; c += 16) sum = add(sum, load(x + c));
  const Floats mean = floats(total(sum) / width);
  for (int64_t c = 0; c < width; c += 16) {
    const Floats d = sub(load(x + c), mean);
    squares = fma(d, d, squares);
  }
  const float variance = total(squares) / width;
  return {mean, floats(1.0f / __builtin_sqrtf(variance + epsilon))};
}

// gamma and beta are divided by the step of the grid, beta shifted by its zero point.
inline void norm_to_codes(const float* x, int64_t width, const float* gamma, const float* beta, float epsilon,
                          Floats top, uint8_t* out) {
  const Moments m = moments(x, width, epsilon);
  for (int64_t c = 0; c < width; c += 16) {
    const Floats y = mul(sub(load(x + c), m.mean), m.scale);
    const Floats z = fma(y, load(gamma + c), load(beta + c));
    store(out + c, to_codes(z, top));
  }
}

// For a step of the row's own, neither gamma nor beta is divided by it; beta holds the offset before rounding.
inline void norm_to_codes(const float* x, int64_t width, const float* gamma, const float* beta, float epsilon,
                          Floats top, float inverse_step, float zero, uint8_t* out) {
  const Moments m = moments(x, width, epsilon);
  for (int64_t c = 0; c < width; c += 16) {
    const Floats y = mul(sub(load(x + c), m.mean), m.scale);
    const Floats z = fma(y, load(gamma + c), load(beta + c));
    const Floats code = fma(z, floats(inverse_step), floats(zero));
    store(out + c, to_codes(code, top));
  }
}

inline void norm_to_float(const float* x, int64_t width, const float* gamma, const float* beta, float epsilon,
                          float* out) {
  const Moments m = moments(x, width, epsilon);
  for (int64_t c = 0; c < width; c += 16) {
    const Floats y = mul(sub(load(x + c), m.mean), m.scale);
    store(out + c, fma(y, load(gamma + c), load(beta + c)));
  }
}

}  // namespace mixaq
