// A tile of 12 rows times a panel of 32 outputs in AVX-512 registers: two hold 4 inputs of 32 outputs, one vpdpbusd
// multiplies 4 inputs of one row with 16 outputs. 24 registers of sums make 24 products cost 2 weight loads and 12
// broadcasts.
#pragma once
#include "tiles.h"

namespace mixaq {

constexpr int kTileRows = 12;

// Sums of `Rows` rows, `stride` bytes apart, with a panel. This is a function of its own so that nothing else competes
// for the registers: if the loop stores a single sum to the stack, it takes twice the time.
template <int Rows>
[[gnu::noinline]] void sum_in_registers(const uint8_t* a, int64_t stride, const int8_t* panel, int64_t inputs,
                                        PanelSums& out) {
  Ints sums[Rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = ints(0);
  // a pointer serves three rows: twelve pointers do not fit the registers
  const uint8_t* of_three[(Rows + 2) / 3];
#pragma GCC unroll 4
  for (int i = 0; i < (Rows + 2) / 3; ++i) of_three[i] = a + 3 * i * stride;
  for (int64_t k = 0; k < inputs; k += 4, panel += 4 * kPanelOutputs) {
    const Ints w[2] = {load_ints(panel), load_ints(panel + 64)};
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      int32_t four;
      std::memcpy(&four, of_three[r / 3] + r % 3 * stride + k, 4);
      const Ints x = ints(four);
      sums[r][0] = add_products(sums[r][0], x, w[0]);
      sums[r][1] = add_products(sums[r][1], x, w[1]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    store(out[r], sums[r][0]);
    store(out[r] + 16, sums[r][1]);
  }
}

// Sums of rows (contiguous, `inputs` wide) with one panel after the other; any codes are exact.
class TileProducts {
 public:
  TileProducts(const uint8_t* a, int64_t, int64_t inputs, int32_t) : a_(a), inputs_(inputs) {}
  void use(const int8_t* panel) { panel_ = panel; }
  template <int Rows>
  void sum(int64_t first, PanelSums& out) const {
    sum_in_registers<Rows>(a_ + first * inputs_, inputs_, panel_, inputs_, out);
  }

 private:
  const uint8_t* a_;
  int64_t inputs_;
  const int8_t* panel_ = nullptr;
};

}  // namespace mixaq
