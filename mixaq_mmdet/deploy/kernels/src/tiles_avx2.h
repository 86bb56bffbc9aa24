// A tile of 6 rows times 16 of a panel's 32 outputs in AVX2 registers, without AVX-512's product of bytes.
//
// AVX2 multiplies bytes and adds two products, but cuts the sum to 16 bits. `Products` says how a layer avoids that: by
// the largest sum that its codes can reach, a 16-bit lane holds so many steps; where it holds none, bytes are widened
// to 16 bits first, which takes twice as many multiplications. CPUs with AVX-VNNI have the product itself.
#pragma once
#include <vector>

#include "tiles.h"

namespace mixaq {

constexpr int kTileRows = 6, kHalfPanel = 16;

// What one row of a tile takes of four, or two, inputs.
inline __m256i spread_32_bits(const void* x) {
  int32_t value;
  std::memcpy(&value, x, 4);
  return _mm256_set1_epi32(value);
}

// Keeps two sums in registers, and what comes after this behind it: g++ would take the products of all rows first.
inline void settle(__m256i (&sums)[2]) { asm("" : "+x"(sums[0]), "+x"(sums[1])); }

// Four inputs a step, all sums in 32 bits.
struct WholeSums {
#ifdef __AVXVNNI__
  static constexpr int kRows = 6;
#else
  static constexpr int kRows = 3;  // ones and sums of two take registers too
#endif
  static __m256i step(__m256i sum, __m256i x, __m256i w) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sum, x, w);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
#endif
  }
};

// Two widened inputs a step.
struct WideSums {
  static __m256i step(__m256i sum, __m256i x, __m256i w) { return _mm256_add_epi32(sum, _mm256_madd_epi16(x, w)); }
};

// Four inputs a step, sums of two in 16 bits.
struct NarrowSums {
  static __m256i step(__m256i sum, __m256i x, __m256i w) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(x, w)); }
};

// Sums of `Rows` rows, `stride` bytes apart, with half a panel: `steps` times 4 bytes of each row, and 64 of `panel`,
// whose steps are 128 bytes apart.
template <class Sums, int Rows>
[[gnu::always_inline]] inline void take_steps(const char* a, int64_t stride, const char* panel, int64_t steps,
                                              __m256i (&sums)[Rows][2]) {
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < steps; ++k, a += 4, panel += 128) {
    const __m256i w[2] = {load_half(panel), load_half(panel + 32)};
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const __m256i x = spread_32_bits(a + r * stride);
      sums[r][0] = Sums::step(sums[r][0], x, w[0]);
      sums[r][1] = Sums::step(sums[r][1], x, w[1]);
      settle(sums[r]);
    }
  }
}

// To `out`. A function of its own, so that nothing else competes for the registers.
template <class Sums, int Rows>
[[gnu::noinline]] void sum_half(const char* a, int64_t stride, const char* panel, int64_t steps,
                                int32_t (*out)[kPanelOutputs]) {
  __m256i sums[Rows][2];
  take_steps<Sums, Rows>(a, stride, panel, steps, sums);
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r) {
    store_half(out[r], sums[r][0]);
    store_half(out[r] + 8, sums[r][1]);
  }
}

// The same with sums in 16 bits, which hold `steps` steps; `more`: added to what `out` has.
template <int Rows>
[[gnu::noinline]] void sum_half_narrow(const char* a, int64_t stride, const char* panel, int64_t steps, bool more,
                                       int32_t (*out)[kPanelOutputs]) {
  __m256i sums[Rows][2];
  take_steps<NarrowSums, Rows>(a, stride, panel, steps, sums);
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i before = _mm256_set1_epi32(-static_cast<int32_t>(more));
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      const __m256i held = _mm256_and_si256(before, load_half(out[r] + 8 * c));
      store_half(out[r] + 8 * c, _mm256_add_epi32(held, _mm256_madd_epi16(sums[r][c], ones)));
    }
}

// Sums of rows (contiguous, `inputs` wide) with one panel after the other. `held`: how many steps of four inputs a
// 16-bit lane holds, whatever the codes.
class TileProducts {
 public:
  TileProducts(const uint8_t* a, int64_t rows, int64_t inputs, int32_t held)
      : a_(reinterpret_cast<const char*>(a)), inputs_(inputs), held_(held) {
#ifdef __AVXVNNI__
    held_ = 1;
#endif
    if (held_) return;
    wide_rows_.resize(rows * inputs);
    for (int64_t i = 0; i < rows * inputs; ++i) wide_rows_[i] = a[i];
  }

  void use(const int8_t* panel) {
    panel_ = reinterpret_cast<const char*>(panel);
    if (held_) return;
    wide_panel_.resize(inputs_ * kPanelOutputs);
    int16_t* wide = wide_panel_.data();
    const __m256i by_pair = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    for (int64_t k = 0; k < inputs_; k += 4)
      for (int output = 0; output < kPanelOutputs; output += 4) {  // 4 inputs of 4 outputs: 2 of each, then the others
        const int8_t* at = panel + k * kPanelOutputs + 4 * output;
        const __m256i halves = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
        const __m256i pairs = _mm256_permutevar8x32_epi32(halves, by_pair);
        int16_t* target = wide + k * kPanelOutputs + 2 * output;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_castsi256_si128(pairs));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(target + 2 * kPanelOutputs), _mm256_extracti128_si256(pairs, 1));
      }
  }

  template <int Rows>
  void sum(int64_t first, PanelSums& out) const {
    for (int64_t output = 0; output < kPanelOutputs; output += kHalfPanel) {
      const auto target = reinterpret_cast<int32_t(*)[kPanelOutputs]>(&out[0][output]);
      const char *a = a_ + first * inputs_, *panel = panel_ + 4 * output;
      if (held_ >= kWorthwhile) {
        for (int64_t done = 0, steps = inputs_ / 4; done < steps; done += held_)
          sum_half_narrow<Rows>(a + 4 * done, inputs_, panel + 128 * done, std::min(held_, steps - done), done, target);
      } else if (held_) {
        constexpr int kAtOnce = std::min(Rows, WholeSums::kRows);
        for (int r = 0; r < Rows; r += kAtOnce)
          sum_half<WholeSums, kAtOnce>(a + r * inputs_, inputs_, panel, inputs_ / 4, target + r);
      } else {
        const int16_t *wide_a = wide_rows_.data() + first * inputs_, *wide = wide_panel_.data() + 2 * output;
        sum_half<WideSums, Rows>(reinterpret_cast<const char*>(wide_a), 2 * inputs_,
                                 reinterpret_cast<const char*>(wide), inputs_ / 2, target);
      }
    }
  }

 private:
  using Halves = std::vector<int16_t>;
  static constexpr int kWorthwhile = 3;
  // one memory for all products of a thread
  static Halves& kept(int which) {
    thread_local Halves memory[2];
    return memory[which];
  }
  const char* a_;
  int64_t inputs_, held_;
  const char* panel_ = nullptr;
  Halves &wide_rows_ = kept(0), &wide_panel_ = kept(1);
};

}  // namespace mixaq
