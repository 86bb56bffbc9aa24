// Short functions of vectors.
#pragma once
#include <cstring>

#include "lanes.h"

namespace mixaq {

constexpr int64_t kLine = 64;  // bytes that come from memory together

// What lies there will be read soon: into L2, because it is more than L1 holds beside what is read now.
inline void ask_for(const void* at) { __builtin_prefetch(at, 0, 2); }

// Codes 0 .. top of values that are already divided by the step and shifted by the zero point.
inline Bytes to_codes(Floats x, Floats top) {
  return low_bytes(to_ints(min(max(x, floats(0)), top)));  // rounds half to even, as torch.round
}

// Such codes as 32-bit integers, those below 0 yet to be cut by `store_codes`. NaN becomes 0.
inline Ints rounded(Floats x, Floats top) { return to_ints(min(top, x)); }

inline void store_codes(uint8_t* target, Ints x) { store(target, low_bytes(max(x, ints(0)))); }

// 2^x for x <= 0, relative error below 2e-7; 2^-100 where x is below -100, so that nothing becomes
// denormal.
inline Floats exp2_negative(Floats x) {
  x = max(x, floats(-100.0f));
  const Floats integer = floats(3 << 22);  // in the lowest bits of its sum with a small number is an integer
  const Floats whole = add(x, integer);
  const Floats f = sub(x, sub(whole, integer));
  Floats p = floats(1.340043217e-03f);
  p = fma(p, f, floats(9.676037098e-03f));
  p = fma(p, f, floats(5.550327214e-02f));
  p = fma(p, f, floats(2.402210736e-01f));
  p = fma(p, f, floats(6.931472067e-01f));
  p = fma(p, f, floats(1.000000075e+00f));
  return from_bits(add(bits(p), shift_left<23>(bits(whole))));
}

// Four bytes of each of 16 columns side by side.
inline Ints four_rows(Bytes a, Bytes b, Bytes c, Bytes d) {
  const Bytes low01 = _mm_unpacklo_epi8(a, b), high01 = _mm_unpackhi_epi8(a, b);
  const Bytes low23 = _mm_unpacklo_epi8(c, d), high23 = _mm_unpackhi_epi8(c, d);
  return from_quarters(_mm_unpacklo_epi16(low01, low23), _mm_unpackhi_epi16(low01, low23),
                       _mm_unpacklo_epi16(high01, high23), _mm_unpackhi_epi16(high01, high23));
}

// Columns 0 to 3 of 16 rows.
inline void four_columns(const float* rows, int64_t stride, Floats (&columns)[4]) {
  Floats r[4];  // lane l of r[i] is row 4 l + i
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto four = [&](int lane) { return rows + (4 * lane + i) * stride; };
    r[i] = from_fours(four(0), four(1), four(2), four(3));
  }
  const Floats low01 = interleave_low(r[0], r[1]), low23 = interleave_low(r[2], r[3]);
  const Floats high01 = interleave_high(r[0], r[1]), high23 = interleave_high(r[2], r[3]);
  columns[0] = interleave_low_pairs(low01, low23);
  columns[1] = interleave_high_pairs(low01, low23);
  columns[2] = interleave_low_pairs(high01, high23);
  columns[3] = interleave_high_pairs(high01, high23);
}

// Reduces each of four vectors to one number: lane r of every four lanes holds that of vector r.
template <class Combine>
inline Floats reduce_four(const Floats (&v)[4], const Combine& combine) {
  const auto two = [&](Floats a, Floats b) { return combine(interleave_low(a, b), interleave_high(a, b)); };
  const Floats low = two(v[0], v[1]), high = two(v[2], v[3]);
  Floats all = combine(interleave_low_pairs(low, high), interleave_high_pairs(low, high));
  all = combine(all, swap_halves(all));
  return combine(all, swap_fours(all));
}

inline Floats sum_four(const Floats (&v)[4]) {
  return reduce_four(v, [](Floats a, Floats b) { return add(a, b); });
}

// What `reduce_four` returned for vector r, in all lanes.
inline Floats one_of_four(Floats reduced, int r) { return spread_in_fours(reduced, r); }

// Absolute error below 3e-7, of positive normal numbers.
inline Floats log2_positive(Floats x) {
  const Floats one = floats(1.0f), m = mantissa(x);
  const Floats t = div(sub(m, one), add(m, one)), square = mul(t, t);
  Floats p = floats(1.0f / 11);  // artanh
  p = fma(p, square, floats(1.0f / 9));
  p = fma(p, square, floats(1.0f / 7));
  p = fma(p, square, floats(1.0f / 5));
  p = fma(p, square, floats(1.0f / 3));
  p = fma(p, square, one);
  return fma(mul(p, t), floats(2.885390082f), exponent(x));
}

}  // namespace mixaq
