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
  Floats coefficients(int power) const { return load(values_[power]); }

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
  explicit Gelu(float factor = 1, float addend = 0) : factor_(floats(factor)) {
    for (int power = 0; power < 4; ++power)
      cubic_[power] = mul(floats(-factor), GeluTable::get().coefficients(power));
    cubic_[0] = add(cubic_[0], floats(addend));
  }

  Floats operator()(Floats x) const {
    // a little less than the reach, which lies between two pieces
    const Floats reach = floats(GeluTable::kReach * (1 - 1e-6)), per_unit = floats(GeluTable::kPerUnit);
    const Floats integer = floats(3 << 22);  // in the lowest bits of its sum with a small number is an integer
    const Floats t = magnitude_up_to(x, reach);
    const Floats rounded = fma(t, per_unit, integer);
    const Floats u = fms(t, per_unit, sub(rounded, integer));
    const Ints piece = bits(rounded);
    const auto coefficient = [&](int power) { return look_up(cubic_[power], piece); };
    Floats y = fma(coefficient(3), u, coefficient(2));
    y = fma(y, u, coefficient(1));
    y = fma(y, u, coefficient(0));
    const Ints positive = max(bits(x), ints(0));
    return fma(from_bits(positive), factor_, y);
  }

 private:
  Floats cubic_[4], factor_;
};

}  // namespace mixaq
