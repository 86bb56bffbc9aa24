// Pairs of bf16 and their dot products. CPUs without these instructions keep the same values and multiply in float.
#pragma once
#include "simd.h"

namespace mixaq {

#ifdef __AVX512BF16__

// bf16 of the 16 values of `first`, then of `second`.
inline Ints to_bf16(Floats first, Floats second) { return (Ints)_mm512_cvtne2ps_pbh(second, first); }

// bf16 of each value of `first` beside that of `second`.
inline Ints to_bf16_pairs(Floats first, Floats second) {
  alignas(64) static const uint16_t kInterleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(load_ints(kInterleave), to_bf16(first, second));
}

inline Floats rounded_to_bf16(Floats x) {
  const __m256i half = _mm512_castsi512_si256(to_bf16(x, x));
  return from_bits(shift_left<16>(_mm512_cvtepu16_epi32(half)));
}

// sum + x[2 i] y[2 i] + x[2 i + 1] y[2 i + 1] for each i of 16.
inline Floats dot_bf16(Floats sum, Ints x, Ints y) {
  return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
}

#else

inline Ints upper_halves() { return ints(static_cast<int32_t>(0xffff0000u)); }

inline Floats rounded_to_bf16(Floats x) {  // half to even, like the instruction
  const Ints odd = both(shift_right<16>(bits(x)), ints(1));
  return from_bits(both(add(bits(x), add(odd, ints(0x7fff))), upper_halves()));
}

inline Ints to_bf16(Floats first, Floats second) {
  return pack_upper_halves(bits(rounded_to_bf16(first)), bits(rounded_to_bf16(second)));
}

inline Ints to_bf16_pairs(Floats first, Floats second) {
  return either(shift_right<16>(bits(rounded_to_bf16(first))), bits(rounded_to_bf16(second)));
}

inline Floats dot_bf16(Floats sum, Ints x, Ints y) {
  const auto even = [](Ints pairs) { return from_bits(shift_left<16>(pairs)); };
  const auto odd = [](Ints pairs) { return from_bits(both(pairs, upper_halves())); };
  return fma(even(x), even(y), fma(odd(x), odd(y), sum));
}

#endif

}  // namespace mixaq
