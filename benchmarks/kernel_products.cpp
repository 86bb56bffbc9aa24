// Times of the kernels' products alone, for kernels.py.
#include "gemm.h"

#include <chrono>
#include <vector>

namespace {

using namespace mixaq;

template <class Work>
double seconds_of(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Sums of all whole tiles, which nothing becomes of.
void sum_only(const Linear& layer, const uint8_t* a, int64_t rows, PanelSums& sums) {
#ifdef __AMX_INT8__
  if (const int64_t step = matrix_tiles() ? tile_inputs(layer.inputs) : 0) {
    const MatrixTiles tiles(step);
    for (int64_t column = 0; column < layer.outputs; column += kColumns)
      for (int64_t r = 0; r + 2 * kMatrixRows <= rows; r += 2 * kMatrixRows)
        sum_on_tiles<true>(a + r * layer.inputs, layer.inputs, layer.panels + column * layer.inputs, layer.inputs, step,
                           sums);
    return;
  }
#endif
  TileProducts products(a, rows, layer.inputs, layer.held[0]);
  for (int64_t column = 0; column < layer.outputs; column += kColumns) {
    products.use(layer.panels + column * layer.inputs);
    for (int64_t r = 0; r < rows; r += kTileRows) products.sum<kTileRows>(r, sums);
  }
}

}  // namespace

// The fastest of `rounds` rounds of a product of random codes: the loop alone, to codes, through GELU to codes, added to
// float rows. `rows` is a multiple of 12 and 32, `outputs` of 32; `held` as in Linear, of weights of so many bits.
extern "C" void time_products(int64_t rows, int64_t inputs, int64_t outputs, int64_t rounds, int held,
                              double* seconds) {
  std::vector<uint8_t> a(rows * inputs), codes(rows * outputs);
  std::vector<int8_t> panels(inputs * outputs);
  std::vector<float> stream(rows * outputs), multiplier(outputs, 1e-3f), addend(outputs, 8.0f), top(outputs, 255.0f);
  std::vector<int32_t> offset(outputs), row_sums(rows);
  std::vector<int64_t> order(rows);
  uint32_t random = 1;
  const auto next = [&] { return (random = random * 1664525 + 1013904223) >> 24; };
  for (auto& value : a) value = next();
  for (auto& value : panels) value = next();
  for (int64_t r = 0; r < rows; ++r) order[r] = r;
  Linear layer{};
  layer.panels = panels.data();
  layer.offset[0] = offset.data();
  layer.multiplier[0] = multiplier.data();
  layer.addend[0] = addend.data();
  layer.inputs = inputs;
  layer.outputs = outputs;
  layer.held[0] = held;
  alignas(64) PanelSums sums;
  const CodeRows target{codes.data(), outputs, order.data()};
  const auto run = [&](const auto& epilogue) { multiply(layer, 0, a.data(), rows, row_sums.data(), epilogue); };
  std::fill(seconds, seconds + 4, 1e9);
  for (int64_t round = 0; round < rounds; ++round) {
    const double found[] = {
        seconds_of([&] { sum_only(layer, a.data(), rows, sums); }),
        seconds_of([&] { run(ToCodes{target, top.data()}); }),
        seconds_of([&] { run(GeluToCodes{target, Gelu(40, 8), floats(255)}); }),
        seconds_of([&] { run(AddToStream{{stream.data(), outputs}, order.data()}); }),
    };
    for (int i = 0; i < 4; ++i) seconds[i] = std::min(seconds[i], found[i]);
  }
}
