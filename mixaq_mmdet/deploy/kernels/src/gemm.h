// Products of u8 activations with packed s8 weights.
//
// Weights come in panels of 32 outputs, [K / 4][32][4]. A panel stays in L1 or L2 while all rows of a chunk pass it, a
// tile of kTileRows at once (tiles_avx512.h, tiles_avx2.h). CPUs that multiply matrices (AMX) take the same panels, 32
// rows at once (tiles.h).
//
// Loops over registers are all unrolled by pragmas: g++ keeps an array in memory if one loop over it remains.
#pragma once
#include <algorithm>

#include "gelu.h"
#include "tiles.h"
#ifdef __AVX512VNNI__
#include "tiles_avx512.h"
#else
#include "tiles_avx2.h"
#endif

namespace mixaq {

constexpr int kColumns = kPanelOutputs;

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
  int32_t held[2];  // steps of four products whose sum fits 16 bits
};

// From the sums of the rows `first` to `last` with 32 outputs to what becomes of them.
template <class Epilogue>
inline void deliver(const Linear& layer, int branch, const int32_t (*sums)[kColumns], int64_t first, int64_t last,
                    const int32_t* row_sums, const float* row_scale, int64_t column, const Epilogue& epilogue) {
  const bool whole = column + 16 < layer.outputs;
  const int32_t* offset = layer.offset[branch] + column;
  const float *multiplier = layer.multiplier[branch] + column, *addend = layer.addend[branch] + column;
  const Ints offsets[2] = {load_ints(offset), load_ints(offset + 16)};
  const Floats multipliers[2] = {load(multiplier), load(multiplier + 16)};
  const Floats addends[2] = {load(addend), load(addend + 16)};
  const auto left = epilogue.columns(column), right = epilogue.columns(whole ? column + 16 : column);
  const Shift doubling = shift_by(layer.doubling);
  for (int64_t row = first; row < last; ++row) {
    Floats x[2];
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      Ints sum = add(offsets[c], load_ints(sums[row - first] + 16 * c));
      if (layer.zero_point) {
        const Ints of_row = ints(row_sums[row]);
        const Ints shift = mul(load_ints(layer.zero_point + column + 16 * c), of_row);
        sum = sub(shift_left(sum, doubling), shift);
      }
      x[c] = to_floats(sum);
      if (row_scale) x[c] = mul(x[c], floats(row_scale[row]));
      x[c] = fma(x[c], multipliers[c], addends[c]);
    }
    const auto y = epilogue.finish(row, left, x[0]);
    if (whole)
      epilogue.store(row, column, y, epilogue.finish(row, right, x[1]));
    else
      epilogue.store(row, column, y);
  }
}

inline void sum_rows(const uint8_t* a, int64_t rows, int64_t width, int32_t shift, int32_t* sums) {
  for (int64_t r = 0; r < rows; ++r) sums[r] = sum_of_bytes(a + r * width, width) - shift;
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
  TileProducts products(a, rows, stride, layer.held[branch]);
  alignas(64) PanelSums sums;
  for (int64_t column = 0; column < layer.outputs; column += kColumns) {
    products.use(layer.panels + column * layer.inputs);
    for (int64_t r = 0, last; r < rows; r = last) {
      const int64_t first = std::min(r, rows - count);
      if (count == kTileRows)
        products.sum<kTileRows>(first, sums);
      else
        products.sum<1>(first, sums);
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
  void store(int64_t row, int64_t column, Ints x) const { store_codes(at(row, column), x); }
  void store(int64_t row, int64_t column, Ints x, Ints y) const { store_codes(at(row, column), x, y); }
};

// To codes of a grid per column; the addend holds the zero point.
struct ToCodes : CodeRows {
  const float* top;  // highest code of each column
  Floats columns(int64_t column) const { return load(top + column); }
  Ints finish(int64_t, Floats limit, Floats x) const { return rounded(x, limit); }
};

// GELU in float, then to codes of one grid.
struct GeluToCodes : CodeRows {
  Gelu gelu;  // of the grid's step and zero point
  Floats top;
  int columns(int64_t) const { return 0; }
  Ints finish(int64_t, int, Floats x) const { return rounded(gelu(x), top); }
};

struct FloatRows {
  float* out;
  int64_t stride;
};

// Added to rows of the residual stream.
struct AddToStream : FloatRows {
  const int64_t* rows;
  int columns(int64_t) const { return 0; }
  Floats finish(int64_t, int, Floats x) const { return x; }
  void store(int64_t row, int64_t column, Floats x) const {
    float* target = out + rows[row] * stride + column;
    mixaq::store(target, add(load(target), x));
  }
  void store(int64_t row, int64_t column, Floats x, Floats y) const {
    store(row, column, x);
    store(row, column + 16, y);
  }
};

struct ToFloat : FloatRows {
  int columns(int64_t) const { return 0; }
  Floats finish(int64_t, int, Floats x) const { return x; }
  void store(int64_t row, int64_t column, Floats x) const { mixaq::store(out + row * stride + column, x); }
  void store(int64_t row, int64_t column, Floats x, Floats y) const {
    store(row, column, x);
    store(row, column + 16, y);
  }
};

}  // namespace mixaq
