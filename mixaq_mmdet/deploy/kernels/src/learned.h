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
  const float* v_scale;            // (channels of a head,), of the attended sums; 1 with steps of v by position
  const float* proj_in_before;     // (channels,)
  const float* fc2_in_before;      // (hidden,)
  float qkv_in_zero, proj_in_zero, fc1_in_zero, fc2_in_zero;
  int32_t k_zero;
  int32_t v_by_position;  // whether v has steps of each position
};

inline void spread_rows(const float* by_position, const int32_t* positions, int64_t rows, float* out) {
  for (int64_t r = 0; r < rows; ++r) out[r] = by_position[positions[r]];
}

// q, k and v of `channels` columns each; the addend of the product holds the offset before rounding.
struct LearnedToCodes : CodeRows {
  const float *top, *zero;  // of each column
  const int32_t* positions;
  const float* inverse[3];
  int64_t channels;

  struct Columns {
    Floats limit, zero;
    const float* inverse;
  };
  Columns columns(int64_t column) const {
    return {load(top + column), load(zero + column), inverse[column / channels]};
  }
  Ints finish(int64_t row, const Columns& c, Floats x) const {
    return rounded(fma(x, floats(c.inverse[positions[row]]), c.zero), c.limit);
  }
};

struct LearnedGeluToCodes : CodeRows {
  const float* before;  // of each column
  const int32_t* positions;
  const float* inverse;
  Floats zero, top;
  Gelu gelu;
  Floats columns(int64_t column) const { return load(before + column); }
  Ints finish(int64_t row, Floats offset, Floats x) const {
    const Floats y = add(gelu(x), offset);
    return rounded(fma(y, floats(inverse[positions[row]]), zero), top);
  }
};

}  // namespace mixaq
