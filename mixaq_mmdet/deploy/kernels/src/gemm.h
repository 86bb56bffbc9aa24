// Products of u8 activations with packed s8 weights.
//
// Weights come in panels of 32 outputs, [K / 4][32][4]: four 256-bit registers hold 4 inputs of 32 outputs, one vpdpbusd
// multiplies 4 inputs of one row with 8 outputs. A tile of 6 rows keeps 24 registers of sums, so that 24 products cost
// 4 weight loads and 6 broadcasts. A panel stays in L1 or L2 while all rows of a chunk pass it. CPUs that multiply
// matrices (AMX) take the same panels, 32 rows at once (tiles.h).
#pragma once
#include <algorithm>

#include "tiles.h"

namespace mixaq {

constexpr int kColumns = kPanelOutputs, kTileRows = 6;

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

// From the sums of a few rows with 32 outputs, offset included, to what becomes of them.
template <int Rows, class Epilogue>
inline void deliver(const Linear& layer, int branch, __m512i (&sums)[Rows][2], const int32_t* row_sums,
                    const float* row_scale, int64_t first_row, int64_t first_column, const Epilogue& epilogue) {
  const __m128i doubling = _mm_cvtsi32_si128(layer.doubling);
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    const int64_t column = first_column + 16 * c;
    if (column >= layer.outputs) break;
    const __m512 multiplier = _mm512_loadu_ps(layer.multiplier[branch] + column);
    const __m512 addend = _mm512_loadu_ps(layer.addend[branch] + column);
    const auto columns = epilogue.columns(column);
    if (layer.zero_point) {
      const __m512i zero_point = _mm512_loadu_si512(layer.zero_point + column);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m512i shift = _mm512_mullo_epi32(zero_point, _mm512_set1_epi32(row_sums[r]));
        sums[r][c] = _mm512_sub_epi32(_mm512_sll_epi32(sums[r][c], doubling), shift);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      __m512 x = _mm512_cvtepi32_ps(sums[r][c]);
      if (row_scale) x = _mm512_mul_ps(x, _mm512_set1_ps(row_scale[r]));
      epilogue.store(first_row + r, column, columns, _mm512_fmadd_ps(x, multiplier, addend));
    }
  }
}

template <int Rows, class Epilogue>
inline void tile(const Linear& layer, int branch, const uint8_t* a, int64_t stride, const int32_t* row_sums,
                 const float* row_scale, int64_t first_row, int64_t first_column, const Epilogue& epilogue) {
  const int8_t* panel = layer.panels + first_column * layer.inputs;
  // 256 bits, not 512: measured faster (docs/performance.md); joined to 512 bits for what follows
  __m256i halves[Rows][4];
  const int32_t* offset = layer.offset[branch] + first_column;
  for (int c = 0; c < 4; ++c) {
    const __m256i start = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offset + 8 * c));
    for (int r = 0; r < Rows; ++r) halves[r][c] = start;
  }
  for (int64_t k = 0; k < layer.inputs; k += 4) {
    __m256i w[4];
    for (int c = 0; c < 4; ++c) w[c] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32 * c));
    panel += 4 * kColumns;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      int32_t four;
      std::memcpy(&four, a + r * stride + k, 4);
      const __m256i x = _mm256_set1_epi32(four);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) halves[r][c] = _mm256_dpbusd_epi32(halves[r][c], x, w[c]);
    }
  }
  __m512i sums[Rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < 2; ++c)
      sums[r][c] = _mm512_inserti64x4(_mm512_castsi256_si512(halves[r][2 * c]), halves[r][2 * c + 1], 1);
  deliver<Rows>(layer, branch, sums, row_sums, row_scale, first_row, first_column, epilogue);
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

// Rows of `sums` from `row` on, as many as `Rows`.
template <int Rows, class Epilogue>
inline void deliver_panel(const Linear& layer, int branch, const PanelSums& panel_sums, int64_t row,
                          const int32_t* row_sums, const float* row_scale, int64_t first_row, int64_t first_column,
                          const Epilogue& epilogue) {
  __m512i sums[Rows][2];
  for (int c = 0; c < 2; ++c) {
    const __m512i offset = _mm512_loadu_si512(layer.offset[branch] + first_column + 16 * c);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
      sums[r][c] = _mm512_add_epi32(offset, _mm512_load_si512(panel_sums[row + r] + 16 * c));
  }
  deliver<Rows>(layer, branch, sums, row_sums, row_scale, first_row, first_column, epilogue);
}

// `multiply` of at least 16 rows, `step` inputs at once. The last rows are taken together with some before them.
template <class Epilogue>
void multiply_on_tiles(const Linear& layer, int branch, const uint8_t* a, int64_t rows, int64_t step,
                       const int32_t* row_sums, const Epilogue& epilogue, const float* row_scale) {
  const int64_t stride = layer.inputs;
  const MatrixTiles tiles(step);
  alignas(64) PanelSums sums;
  for (int64_t column = 0; column < layer.outputs; column += kColumns) {
    const int8_t* panel = layer.panels + column * layer.inputs;
    for (int64_t r = 0; r < rows;) {
      const bool both = rows - r > kMatrixRows && rows >= 2 * kMatrixRows;
      const int64_t count = both ? 2 * kMatrixRows : kMatrixRows, first = std::min(r, rows - count);
      if (both)
        sum_on_tiles<true>(a + first * stride, stride, panel, layer.inputs, step, sums);
      else
        sum_on_tiles<false>(a + first * stride, stride, panel, layer.inputs, step, sums);
      const auto scale_of = [&](int64_t row) { return row_scale ? row_scale + row : nullptr; };
      for (; r + 4 <= first + count; r += 4)
        deliver_panel<4>(layer, branch, sums, r - first, row_sums + r, scale_of(r), r, column, epilogue);
      for (; r < first + count; ++r)
        deliver_panel<1>(layer, branch, sums, r - first, row_sums + r, scale_of(r), r, column, epilogue);
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
  if (step) return multiply_on_tiles(layer, branch, a, rows, step, row_sums, epilogue, row_scale);
#endif
  const auto scale_of = [&](int64_t r) { return row_scale ? row_scale + r : nullptr; };
  for (int64_t column = 0; column < layer.outputs; column += kColumns) {
    int64_t r = 0;
    for (; r + kTileRows <= rows; r += kTileRows)
      tile<kTileRows>(layer, branch, a + r * stride, stride, row_sums + r, scale_of(r), r, column, epilogue);
    for (; r + 2 <= rows; r += 2)
      tile<2>(layer, branch, a + r * stride, stride, row_sums + r, scale_of(r), r, column, epilogue);
    for (; r < rows; ++r)
      tile<1>(layer, branch, a + r * stride, stride, row_sums + r, scale_of(r), r, column, epilogue);
  }
}

// ---- what becomes of a result; `columns` loads what is the same for all rows of a tile ----

// To codes of a grid per column; the addend holds the zero point.
struct ToCodes {
  uint8_t* out;
  int64_t stride;
  const float* top;      // highest code of each column
  const int64_t* place;  // row of `out` for each row, or null
  __m512 columns(int64_t column) const { return _mm512_loadu_ps(top + column); }
  void store(int64_t row, int64_t column, __m512 limit, __m512 x) const {
    uint8_t* target = out + (place ? place[row] : row) * stride + column;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), to_codes(x, limit));
  }
};

// GELU in float, then to codes of one grid.
struct GeluToCodes {
  uint8_t* out;
  int64_t stride;
  __m512 inverse_scale, zero_point, top;
  int columns(int64_t) const { return 0; }
  void store(int64_t row, int64_t column, int, __m512 x) const {
    const __m512 y = _mm512_fmadd_ps(gelu(x), inverse_scale, zero_point);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + row * stride + column), to_codes(y, top));
  }
};

// Added to rows of the residual stream.
struct AddToStream {
  float* stream;
  int64_t stride;
  const int64_t* rows;
  int columns(int64_t) const { return 0; }
  void store(int64_t row, int64_t column, int, __m512 x) const {
    float* target = stream + rows[row] * stride + column;
    _mm512_storeu_ps(target, _mm512_add_ps(_mm512_loadu_ps(target), x));
  }
};

struct ToFloat {
  float* out;
  int64_t stride;
  int columns(int64_t) const { return 0; }
  void store(int64_t row, int64_t column, int, __m512 x) const { _mm512_storeu_ps(out + row * stride + column, x); }
};

}  // namespace mixaq
