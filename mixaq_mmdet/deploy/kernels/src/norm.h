// LayerNorm of rows, four at once: their sums over lanes, roots and quotients are made together, so that no row waits
// for its own.
#pragma once
#include <algorithm>

#include "simd.h"

namespace mixaq {

constexpr int kNormRows = 4;  // what `reduce_four` takes

// Of four rows: lane r of every four lanes of `scale` is that of row r.
struct Moments {
  Floats mean[kNormRows], scale[kNormRows];
};

inline Moments moments(const float* const (&x)[kNormRows], int64_t width, float epsilon) {
  const Floats count = floats(static_cast<float>(width));
  Moments m;
  Floats of_rows[kNormRows];
#pragma GCC unroll 4
  for (int r = 0; r < kNormRows; ++r) of_rows[r] = floats(0);
  for (int64_t c = 0; c < width; c += 16)
#pragma GCC unroll 4
    for (int r = 0; r < kNormRows; ++r) of_rows[r] = add(of_rows[r], load(x[r] + c));
  const Floats means = div(sum_four(of_rows), count);
#pragma GCC unroll 4
  for (int r = 0; r < kNormRows; ++r) {
    m.mean[r] = one_of_four(means, r);
    of_rows[r] = floats(0);
  }
  for (int64_t c = 0; c < width; c += 16)
#pragma GCC unroll 4
    for (int r = 0; r < kNormRows; ++r) {
      const Floats d = sub(load(x[r] + c), m.mean[r]);
      of_rows[r] = fma(d, d, of_rows[r]);
    }
  const Floats variances = div(sum_four(of_rows), count);
  const Floats scales = div(floats(1.0f), root(add(variances, floats(epsilon))));
#pragma GCC unroll 4
  for (int r = 0; r < kNormRows; ++r) m.scale[r] = one_of_four(scales, r);
  return m;
}

// Calls write(row, column, 16 values) for all of `rows` rows of `width` numbers, row r at source(r). Behind the last
// row it is repeated, so that write has to give the same for the same row.
template <class Source, class Write>
inline void normalise(int64_t rows, int64_t width, const float* gamma, const float* beta, float epsilon,
                      const Source& source, const Write& write) {
  for (int64_t first = 0; first < rows; first += kNormRows) {
    const float* x[kNormRows];
    int64_t row[kNormRows];
    for (int r = 0; r < kNormRows; ++r) {
      row[r] = std::min(first + r, rows - 1);
      x[r] = source(row[r]);
    }
    const Moments m = moments(x, width, epsilon);
    for (int64_t c = 0; c < width; c += 16) {
      const Floats g = load(gamma + c), b = load(beta + c);
      Floats y[kNormRows];
#pragma GCC unroll 4
      for (int r = 0; r < kNormRows; ++r) y[r] = fma(mul(sub(load(x[r] + c), m.mean[r]), m.scale[r]), g, b);
      // all are read before one is written: write may go to where the rows are
#pragma GCC unroll 4
      for (int r = 0; r < kNormRows; ++r) write(row[r], c, y[r]);
    }
  }
}

// To codes of one grid, rows of `width`: gamma and beta are divided by its step, beta shifted by its zero point.
struct NormToCodes {
  uint8_t* out;
  int64_t width;
  Floats top;
  void operator()(int64_t row, int64_t column, Floats x) const { store(out + row * width + column, to_codes(x, top)); }
};

}  // namespace mixaq
