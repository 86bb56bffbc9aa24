// Floats to codes, one pass: clip(round((x + before) / step) + zero, 0, top), rounding half to even as torch does.
#include <cmath>

#include "../parallel.h"

namespace mixaq {
namespace {

constexpr int64_t kValues = 1 << 16;  // of one task

inline uint8_t code(float x, float step, float zero, float top) {
  const float rounded = std::nearbyint(x / step) + zero;
  return static_cast<uint8_t>(std::min(std::max(0.0f, rounded), top));  // NaN is 0
}

}  // namespace
}  // namespace mixaq

// x (rows, channels) to out of the same shape; `before` (channels,) is added first, null for none.
extern "C" void mixaq_to_codes(const float* x, int64_t rows, int64_t channels, const float* before, float step,
                               float zero, float top, uint8_t* out, int threads) {
  using namespace mixaq;
  const int64_t per_task = std::max<int64_t>(kValues / std::max<int64_t>(channels, 1), 1);
  run_tasks((rows + per_task - 1) / per_task, threads, [&](const std::function<int64_t()>& take) {
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t first = task * per_task, last = std::min(rows, first + per_task);
      if (!before) {
        for (int64_t i = first * channels; i < last * channels; ++i) out[i] = code(x[i], step, zero, top);
        continue;
      }
      for (int64_t row = first; row < last; ++row)
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t i = row * channels + c;
          out[i] = code(x[i] + before[c], step, zero, top);
        }
    }
  });
}
