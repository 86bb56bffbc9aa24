// Sums of products on matrix tiles (AMX), for CPUs that have them: 16 or 32 rows times a panel of 32 outputs.
//
// One instruction multiplies up to 64 inputs of 16 rows with 16 outputs. A panel of gemm.h is what it reads: 4 inputs of
// 16 outputs are a row of a tile of weights, the other 16 outputs lie 64 bytes behind. Integer sums are exact, so that
// results are those of the vector path, bit for bit.
#pragma once
#include "simd.h"

#include <atomic>

#ifdef __AMX_INT8__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mixaq {

constexpr int64_t kMatrixRows = 16;
constexpr int kPanelOutputs = 32;
using PanelSums = int32_t[2 * kMatrixRows][kPanelOutputs];

// Inputs that one tile takes: a layer's share of at most 64; 0 where no tile of at least 32 divides them.
inline int64_t tile_inputs(int64_t inputs) {
  for (int64_t steps = (inputs + 63) / 64; inputs >= 32 * steps; ++steps)
    if (inputs % (4 * steps) == 0) return inputs / steps;
  return 0;
}

inline std::atomic<bool> matrix_tiles_wanted{true};

// Whether products run on tiles. Linux keeps their registers only for processes that ask.
inline bool matrix_tiles() {
#ifdef __AMX_INT8__
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed && matrix_tiles_wanted.load(std::memory_order_relaxed);
#else
  return false;
#endif
}

#ifdef __AMX_INT8__

// The shapes of this thread's tiles while it lives: sums 0 to 3, rows 4 and 5, weights 6 and 7.
class MatrixTiles {
 public:
  explicit MatrixTiles(int64_t inputs) {
    for (int t = 0; t < 8; ++t) {
      config_.rows[t] = t < 6 ? kMatrixRows : inputs / 4;
      config_.bytes[t] = t == 4 || t == 5 ? inputs : 64;
    }
    // the intrinsics do not tell the compiler what memory they read
    asm volatile("" : : "r"(&config_) : "memory");
    _tile_loadconfig(&config_);
  }
  ~MatrixTiles() { _tile_release(); }
  MatrixTiles(const MatrixTiles&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config_;
};

// Sums of 16 rows, or of 32 if `Both`, `stride` bytes apart, with a panel of `inputs` inputs, `step` at once.
template <bool Both>
inline void sum_on_tiles(const uint8_t* a, int64_t stride, const int8_t* panel, int64_t inputs, int64_t step,
                         PanelSums& sums) {
  constexpr int64_t kPanelRow = 4 * kPanelOutputs, kSumsRow = kPanelOutputs * sizeof(int32_t);
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Both) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < inputs; k += step) {
    _tile_loadd(6, panel + k * kPanelOutputs, kPanelRow);
    _tile_loadd(4, a + k, stride);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, panel + k * kPanelOutputs + 64, kPanelRow);
    _tile_dpbusd(1, 4, 7);
    if constexpr (Both) {
      _tile_loadd(5, a + kMatrixRows * stride + k, stride);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], kSumsRow);
  _tile_stored(1, sums[0] + 16, kSumsRow);
  if constexpr (Both) {
    _tile_stored(2, sums[kMatrixRows], kSumsRow);
    _tile_stored(3, sums[kMatrixRows] + 16, kSumsRow);
  }
}

#endif

}  // namespace mixaq
