// GELU by a table: x (1 + erf(x / sqrt 2)) / 2 = max(x, 0) - h(|x|) with h(t) = t erfc(t / sqrt 2) / 2.
//
// h is a cubic on each of 16 pieces of [0, 4.7], beyond which it is a constant; the absolute error stays below 4e-6. One
// permutation of a register looks up a coefficient for 16 values, and the step and zero point of the codes to come are
// part of the coefficients.
#pragma once
#include "simd.h"

#include <cmath>

namespace mixaq {

class GeluTable {
 public:
  static constexpr int kPieces = 16;
  static constexpr double kReach = 4.7, kPerUnit = (kPieces - 0.5) / kReach;  // pieces are centred at integers

  static const GeluTable& get() {
    static const GeluTable table;
    return table;
  }
  __m512 coefficients(int power) const { return _mm512_load_ps(values_[power]); }

 private:
  // Each cubic meets h at the Chebyshev nodes of its piece, on which u runs from -1/2 to 1/2. The first one is half a
  // piece and meets h at 0, so that GELU of 0 is 0.
  GeluTable() {
    constexpr int kNodes = 4;
    for (int piece = 0; piece < kPieces; ++piece) {
      double u[kNodes], slope[kNodes];  // Newton's divided differences
      for (int i = 0; i < kNodes; ++i) {
        u[i] = piece ? 0.5 * std::cos((i + 0.5) * 3.14159265358979 / kNodes) : i / 6.0;
        slope[i] = h((piece + u[i]) / kPerUnit);
        if (piece == kPieces - 1) slope[i] -= h(kReach) / 2;  // the constant beyond is half of what h is there
      }
      for (int order = 1; order < kNodes; ++order)
        for (int i = kNodes - 1; i >= order; --i) slope[i] = (slope[i] - slope[i - 1]) / (u[i] - u[i - order]);
      double powers[kNodes] = {};
      for (int i = kNodes - 1; i >= 0; --i) {  // powers = slope[i] + (u - u[i]) * powers
        for (int power = kNodes - 1; power > 0; --power) powers[power] = powers[power - 1] - u[i] * powers[power];
        powers[0] = slope[i] - u[i] * powers[0];
      }
      for (int power = 0; power < kNodes; ++power) values_[power][piece] = static_cast<float>(powers[power]);
    }
  }
  static double h(double t) { return t * std::erfc(t * std::sqrt(0.5)) / 2; }

  alignas(64) float values_[4][kPieces];
};

// x -> factor * gelu(x) + addend.
class Gelu {
 public:
  explicit Gelu(float factor = 1, float addend = 0) : factor_(_mm512_set1_ps(factor)) {
    for (int power = 0; power < 4; ++power)
      cubic_[power] = _mm512_mul_ps(_mm512_set1_ps(-factor), GeluTable::get().coefficients(power));
    cubic_[0] = _mm512_add_ps(cubic_[0], _mm512_set1_ps(addend));
  }

  __m512 operator()(__m512 x) const {
    constexpr int kSmallerMagnitude = 0b1010;
    // a little less than the reach, which lies between two pieces
    const __m512 reach = _mm512_set1_ps(GeluTable::kReach * (1 - 1e-6)), per_unit = _mm512_set1_ps(GeluTable::kPerUnit);
    const __m512 integer = _mm512_set1_ps(3 << 22);  // in the lowest bits of its sum with a small number is an integer
    const __m512 t = _mm512_range_ps(x, reach, kSmallerMagnitude);
    const __m512 rounded = _mm512_fmadd_ps(t, per_unit, integer);
    const __m512 u = _mm512_fmsub_ps(t, per_unit, _mm512_sub_ps(rounded, integer));
    const __m512i piece = _mm512_castps_si512(rounded);
    const auto coefficient = [&](int power) { return _mm512_permutexvar_ps(piece, cubic_[power]); };
    __m512 y = _mm512_fmadd_ps(coefficient(3), u, coefficient(2));
    y = _mm512_fmadd_ps(y, u, coefficient(1));
    y = _mm512_fmadd_ps(y, u, coefficient(0));
    const __m512i positive = _mm512_max_epi32(_mm512_castps_si512(x), _mm512_setzero_si512());
    return _mm512_fmadd_ps(_mm512_castsi512_ps(positive), factor_, y);
  }

 private:
  __m512 cubic_[4], factor_;
};

}  // namespace mixaq
