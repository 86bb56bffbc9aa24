// Probabilities of a softmax on their grid, for the product with values: codes, or numbers in bf16.
//
// bf16 holds integers up to 256 and powers of two exactly, but sqrt 2 only to 1e-4. Powers of sqrt 2 are therefore held
// times 169 / 128: even ones as 169 / 128, odd ones as 239 / 128, whose ratio is sqrt 2 to 9e-6.
#pragma once
#include <algorithm>

#include "bf16.h"

namespace mixaq {

// What one branch does between q, k, v and the input of proj.
struct Attention {
  float logit_multiplier;          // q and k steps times log2 e
  int32_t q_zero;                  // k's zero point moves all logits of a row alike: softmax does not see it
  float v_zero;
  int32_t steps_per_octave;        // 1, 2: logarithmic probabilities; 0: uniform; -1: not quantized
  float probability_log_scale;     // log2 D
  float probability_levels;        // 2^bits where logarithmic, 2^bits - 1 where uniform
  float probability_inverse_step;  // uniform
  float probability_zero;
  float out_multiplier, out_zero, out_top;  // to the codes of proj's input; undoes the 169 / 128
};

// Probabilities on a logarithmic grid: the logarithm of each is its logit to base 2 less that of the sum. `reference` is
// that of the sum times the grid's scale.
template <int Steps, int Vectors>
inline void logarithmic(const Attention& p, const Floats (&logits)[Vectors], Floats reference, Floats* out) {
  const Floats steps = floats(Steps), limit = floats(std::min(p.probability_levels, 127.0f * Steps));
  const Ints end = to_ints(limit);  // at the latest where bf16 ends
  const Ints even = bits(floats(Steps == 2 ? 169 / 128.0f : 1.0f));
  const Ints odd = bits(floats(239 / 128.0f));
#pragma GCC unroll 9
  for (int v = 0; v < Vectors; ++v) {
    const Floats exact = mul(sub(reference, logits[v]), steps);
    const Ints q = to_ints(min(max(exact, floats(0)), limit));
    Ints value = even, halvings = q;
    if constexpr (Steps == 2) {
      value = select(is_odd(q), odd, even);
      halvings = shift_right<1>(add(q, ints(1)));
    }
    value = sub_where(less(q, end), value, shift_left<23>(halvings));
    out[v] = from_bits(value);
  }
}

// `x`: logits where the grid is logarithmic, else their exponentials; `of_sum`: `reference` there, else the inverse of
// the sum. Returns the sum of what it writes.
template <int Vectors>
inline float quantize_probabilities(const Attention& p, const Floats (&x)[Vectors], Floats of_sum, float inverse_step,
                                    uint16_t* out) {
  constexpr int kPairs = (Vectors + 1) / 2;
  Floats values[2 * kPairs];
  values[2 * kPairs - 1] = floats(0);
  if (p.steps_per_octave == 2) {
    logarithmic<2>(p, x, of_sum, values);
  } else if (p.steps_per_octave == 1) {
    logarithmic<1>(p, x, of_sum, values);
  } else {
#pragma GCC unroll 9
    for (int v = 0; v < Vectors; ++v) values[v] = mul(x[v], of_sum);
    if (p.steps_per_octave == 0) {
      const Floats zero = floats(p.probability_zero), top = floats(p.probability_levels);
#pragma GCC unroll 9
      for (int v = 0; v < Vectors; ++v) {
        Floats q = nearest(mul(values[v], floats(inverse_step)));
        q = max(add(q, zero), floats(0));
        values[v] = sub(min(q, top), zero);
      }
    }
  }
  Floats sum = floats(0);
#pragma GCC unroll 5
  for (int pair = 0; pair < kPairs; ++pair) {
    const Floats first = values[2 * pair], second = values[2 * pair + 1];
    store(out + 32 * pair, to_bf16(first, second));
    sum = add(sum, add(first, second));
  }
  return total(sum);
}

// `x`: exponentials; `of_sum`: the inverse of their sum. Each lane of what it returns is the sum of every 16th code.
template <int Vectors>
inline Floats probability_codes(const Attention& p, const Floats (&x)[Vectors], Floats of_sum, uint8_t* out) {
  const Floats inverse = floats(p.probability_inverse_step), top = floats(p.probability_levels);
  Ints sum = ints(0);
#pragma GCC unroll 9
  for (int v = 0; v < Vectors; ++v) {
    const Ints code = rounded(mul(mul(x[v], of_sum), inverse), top);
    store(out + 16 * v, low_bytes(code));
    sum = add(sum, code);
  }
  return to_floats(sum);
}

}  // namespace mixaq
