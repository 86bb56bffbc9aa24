// Learned grids (LSQ, OFQ): x^ = (code - zero) step + after, with code = round((x + before) / step) + zero, where a step
// may depend on the token's position in its window. See ../learned.py, which fills these in.
#pragma once
#include "gemm.h"

namespace mixaq {

// By position: (tokens,).
struct Steps {
  const float *step, *inverse;
};

// All grids of one branch of a block.
struct Learned {
  Steps qkv_in, q, k, v, attn, proj_in, fc1_in, fc2_in;
  const float* qkv_zero;           // (3 * channels,)
  const float *q_after, *v_after;  // (channels of a head,)
  const float* proj_in_before;     // (channels,)
  const float* fc2_in_before;      // (hidden,)
  float qkv_in_zero, proj_in_zero, fc1_in_zero, fc2_in_zero;
  int32_t k_zero;
};

inline void spread_rows(const float* by_position, const int32_t* positions, int64_t rows, float* out) {
  for (int64_t r = 0; r < rows; ++r) out[r] = by_position[positions[r]];
}

// q, k and v of `channels` columns each; the addend of the product holds the offset before rounding.
struct LearnedToCodes {
  uint8_t* out;
  int64_t stride;
  const float *top, *zero;  // of each column
  const int64_t* place;     // row of `out` for each row, or null
  const int32_t* positions;
  const float* inverse[3];
  int64_t channels;

  struct Columns {
    __m512 limit, zero;
    const float* inverse;
  };
  Columns columns(int64_t column) const {
    return {_mm512_loadu_ps(top + column), _mm512_loadu_ps(zero + column), inverse[column / channels]};
  }
  void store(int64_t row, int64_t column, const Columns& c, __m512 x) const {
    uint8_t* target = out + (place ? place[row] : row) * stride + column;
    const __m512 code = _mm512_fmadd_ps(x, _mm512_set1_ps(c.inverse[positions[row]]), c.zero);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), to_codes(code, c.limit));
  }
};

struct LearnedGeluToCodes {
  uint8_t* out;
  int64_t stride;
  const float* before;  // of each column
  const int32_t* positions;
  const float* inverse;
  __m512 zero, top;
  __m512 columns(int64_t column) const { return _mm512_loadu_ps(before + column); }
  void store(int64_t row, int64_t column, __m512 offset, __m512 x) const {
    const __m512 y = _mm512_add_ps(gelu(x), offset);
    const __m512 code = _mm512_fmadd_ps(y, _mm512_set1_ps(inverse[positions[row]]), zero);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + row * stride + column), to_codes(code, top));
  }
};

}  // namespace mixaq
