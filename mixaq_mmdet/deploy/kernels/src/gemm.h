// Products of u8 activations with packed s8 weights.
//
// Weights come in panels of 32 outputs, [K / 4][32][4]: two registers hold 4 inputs of 32 outputs, one vpdpbusd
// multiplies 4 inputs of one row with 16 outputs. A tile of 12 rows keeps 24 registers of sums, so that 24 products cost
// 2 weight loads and 12 broadcasts. A panel stays in L1 or L2 while all rows of a chunk pass it. CPUs that multiply
// matrices (AMX) take the same panels, 32 rows at once (tiles.h).
//
// Loops over registers are all unrolled by pragmas: g++ keeps an array in memory if one loop over it remains.
#pragma once
#include <algorithm>

#include "gelu.h"
#include "tiles.h"

namespace mixaq {

constexpr int kColumns = kPanelOutputs, kTileRows = 12;

// See PackedLinear in panels.py.
struct Linear {
  const int8_t* panels;
  const int32_t* zero_point;  // null where weights are symmetric
  const int32_t* offset[2];
  const float* multiplier[2];
  const float* addend[2];
  int64_t inputs, outputs;
  int32_t doubling;  // 0, or 1 where products count twice
  int32_t row_shift[2];
};

// Sums of `Rows` rows, `stride` bytes apart, with a panel. This is a function of its own so that nothing else competes
// for the registers: if the loop stores a single sum to the stack, it takes twice the time.
template <int Rows>
[[gnu::noinline]] void sum_in_registers(const uint8_t* a, int64_t stride, const int8_t* panel, int64_t inputs,
                                        PanelSums& out) {
  __m512i sums[Rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
  // a pointer serves three rows: twelve pointers do not fit the registers
  const uint8_t* of_three[(Rows + 2) / 3];
#pragma GCC unroll 4
  for (int i = 0; i < (Rows + 2) / 3; ++i) of_three[i] = a + 3 * i * stride;
  for (int64_t k = 0; k < inputs; k += 4, panel += 4 * kColumns) {
    const __m512i w[2] = {_mm512_loadu_si512(panel), _mm512_loadu_si512(panel + 64)};
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      int32_t four;
      std::memcpy(&four, of_three[r / 3] + r % 3 * stride + k, 4);
      const __m512i x = _mm512_set1_epi32(four);
      sums[r][0] = _mm512_dpbusd_epi32(sums[r][0], x, w[0]);
      sums[r][1] = _mm512_dpbusd_epi32(sums[r][1], x, w[1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    _mm512_store_si512(out[r], sums[r][0]);
    _mm512_store_si512(out[r] + 16, sums[r][1]);
  }
}

// From the sums of the rows `first` to `last` with 32 outputs to what becomes of them.
template <class Epilogue>
inline void deliver(const Linear& layer, int branch, const int32_t (*sums)[kColumns], int64_t first, int64_t last,
                    const int32_t* row_sums, const float* row_scale, int64_t column, const Epilogue& epilogue) {
  const bool whole = column + 16 < layer.outputs;
  const int32_t* offset = layer.offset[branch] + column;
  const float *multiplier = layer.multiplier[branch] + column, *addend = layer.addend[branch] + column;
  const __m512i offsets[2] = {_mm512_loadu_si512(offset), _mm512_loadu_si512(offset + 16)};
  const __m512 multipliers[2] = {_mm512_loadu_ps(multiplier), _mm512_loadu_ps(multiplier + 16)};
  const __m512 addends[2] = {_mm512_loadu_ps(addend), _mm512_loadu_ps(addend + 16)};
  const auto left = epilogue.columns(column), right = epilogue.columns(whole ? column + 16 : column);
  const __m128i doubling = _mm_cvtsi32_si128(layer.doubling);
  for (int64_t row = first; row < last; ++row) {
    __m512 x[2];
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      __m512i sum = _mm512_add_epi32(offsets[c], _mm512_load_si512(sums[row - first] + 16 * c));
      if (layer.zero_point) {
        const __m512i of_row = _mm512_set1_epi32(row_sums[row]);
        const __m512i shift = _mm512_mullo_epi32(_mm512_loadu_si512(layer.zero_point + column + 16 * c), of_row);
        sum = _mm512_sub_epi32(_mm512_sll_epi32(sum, doubling), shift);
      }
      x[c] = _mm512_cvtepi32_ps(sum);
      if (row_scale) x[c] = _mm512_mul_ps(x[c], _mm512_set1_ps(row_scale[row]));
      x[c] = _mm512_fmadd_ps(x[c], multipliers[c], addends[c]);
    }
    const auto y = epilogue.finish(row, left, x[0]);
    if (whole)
      epilogue.store(row, column, y, epilogue.finish(row, right, x[1]));
    else
      epilogue.store(row, column, y);
  }
}

inline void sum_rows(const uint8_t* a, int64_t rows, int64_t width, int32_t shift, int32_t* sums) {
  for (int64_t r = 0; r < rows; ++r, a += width) {
    __m512i total = _mm512_setzero_si512();
    for (int64_t k = 0; k < width; k += 64) {
      const __mmask64 mask = width - k >= 64 ? ~0ull : (1ull << (width - k)) - 1;
      total = _mm512_add_epi64(
          total, _mm512_sad_epu8(_mm512_maskz_loadu_epi8(mask, a + k), _mm512_setzero_si512()));
    }
    sums[r] = static_cast<int32_t>(_mm512_reduce_add_epi64(total)) - shift;
  }
}

#ifdef __AMX_INT8__

// `multiply` of at least 16 rows, `step` inputs at once. The last rows are taken together with some before them.
template <class Epilogue>
void multiply_on_tiles(const Linear& layer, int branch, const uint8_t* a, int64_t rows, int64_t step,
                       const int32_t* row_sums, const float* row_scale, const Epilogue& epilogue) {
  const int64_t stride = layer.inputs;
  const MatrixTiles tiles(step);
  alignas(64) PanelSums sums;
  for (int64_t column = 0; column < layer.outputs; column += kColumns) {
    const int8_t* panel = layer.panels + column * layer.inputs;
    for (int64_t r = 0, last; r < rows; r = last) {
      const bool both = rows - r > kMatrixRows && rows >= 2 * kMatrixRows;
      const int64_t count = both ? 2 * kMatrixRows : kMatrixRows, first = std::min(r, rows - count);
      if (both)
        sum_on_tiles<true>(a + first * stride, stride, panel, layer.inputs, step, sums);
      else
        sum_on_tiles<false>(a + first * stride, stride, panel, layer.inputs, step, sums);
      last = first + count;
      deliver(layer, branch, sums + (r - first), r, last, row_sums, row_scale, column, epilogue);
    }
  }
}

#endif

// All rows (contiguous, `inputs` wide) times all outputs. `row_sums` is scratch for as many rows; `row_scale`, if any,
// is the step of each row's codes where it depends on the row.
template <class Epilogue>
void multiply(const Linear& layer, int branch, const uint8_t* a, int64_t rows, int32_t* row_sums,
              const Epilogue& epilogue, const float* row_scale = nullptr) {
  const int64_t stride = layer.inputs;
  if (layer.zero_point) sum_rows(a, rows, stride, layer.row_shift[branch], row_sums);
#ifdef __AMX_INT8__
  const int64_t step = rows >= kMatrixRows && matrix_tiles() ? tile_inputs(layer.inputs) : 0;
  if (step) return multiply_on_tiles(layer, branch, a, rows, step, row_sums, row_scale, epilogue);
#endif
  const int64_t count = rows >= kTileRows ? kTileRows : 1;
  alignas(64) PanelSums sums;
  for (int64_t column = 0; column < layer.outputs; column += kColumns) {
    const int8_t* panel = layer.panels + column * layer.inputs;
    for (int64_t r = 0, last; r < rows; r = last) {
      const int64_t first = std::min(r, rows - count);
      if (count == kTileRows)
        sum_in_registers<kTileRows>(a + first * stride, stride, panel, layer.inputs, sums);
      else
        sum_in_registers<1>(a + first * stride, stride, panel, layer.inputs, sums);
      last = first + count;
      deliver(layer, branch, sums + (r - first), r, last, row_sums, row_scale, column, epilogue);
    }
  }
}

// ---- what becomes of a result; `columns` loads what is the same for all rows of 16 outputs ----

// Rows of codes.
struct CodeRows {
  uint8_t* out;
  int64_t stride;
  const int64_t* place;  // row of `out` for each row, or null
  uint8_t* at(int64_t row, int64_t column) const { return out + (place ? place[row] : row) * stride + column; }
  void store(int64_t row, int64_t column, __m512i x) const { store_codes(at(row, column), x); }
  void store(int64_t row, int64_t column, __m512i x, __m512i y) const { store_codes(at(row, column), x, y); }
};

// To codes of a grid per column; the addend holds the zero point.
struct ToCodes : CodeRows {
  const float* top;  // highest code of each column
  __m512 columns(int64_t column) const { return _mm512_loadu_ps(top + column); }
  __m512i finish(int64_t, __m512 limit, __m512 x) const { return rounded(x, limit); }
};

// GELU in float, then to codes of one grid.
struct GeluToCodes : CodeRows {
  Gelu gelu;  // of the grid's step and zero point
  __m512 top;
  int columns(int64_t) const { return 0; }
  __m512i finish(int64_t, int, __m512 x) const { return rounded(gelu(x), top); }
};

struct FloatRows {
  float* out;
  int64_t stride;
};

// Added to rows of the residual stream.
struct AddToStream : FloatRows {
  const int64_t* rows;
  int columns(int64_t) const { return 0; }
  __m512 finish(int64_t, int, __m512 x) const { return x; }
  void store(int64_t row, int64_t column, __m512 x) const {
    float* target = out + rows[row] * stride + column;
    _mm512_storeu_ps(target, _mm512_add_ps(_mm512_loadu_ps(target), x));
  }
  void store(int64_t row, int64_t column, __m512 x, __m512 y) const {
    store(row, column, x);
    store(row, column + 16, y);
  }
};

struct ToFloat : FloatRows {
  int columns(int64_t) const { return 0; }
  __m512 finish(int64_t, int, __m512 x) const { return x; }
  void store(int64_t row, int64_t column, __m512 x) const { _mm512_storeu_ps(out + row * stride + column, x); }
  void store(int64_t row, int64_t column, __m512 x, __m512 y) const {
    store(row, column, x);
    store(row, column + 16, y);
  }
};

}  // namespace mixaq
