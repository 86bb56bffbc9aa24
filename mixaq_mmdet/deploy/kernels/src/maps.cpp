// What lies between the blocks: patch merging and output norms.
#include "gemm.h"
#include "norm.h"
#include "parallel.h"
#include "sizes.h"

namespace mixaq {

constexpr int64_t kRows = 128;               // tokens worked on at once
constexpr int64_t kOutputBytes = 256 << 10;  // of normed tokens before they are transposed

struct Merging {
  Linear reduction;  // inputs ordered by corner, then channel
  const float *gamma, *beta;
  float in_top, epsilon;
  int64_t channels;
};

}  // namespace mixaq

MIXAQ_SIZE_OF(Merging)

// stream (batch, height, width, channels), `values` numbers, to out (batch, ceil(height / 2), ceil(width / 2), outputs),
// `results` numbers. Returns null, or what does not fit.
extern "C" const char* mixaq_merge(const mixaq::Merging* merging, const float* stream, int64_t values, int64_t batch,
                                   int64_t height, int64_t width, float* out, int64_t results, int threads) {
  using namespace mixaq;
  const Merging& m = *merging;
  const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2, total = batch * rows * columns;
  const int64_t channels = m.channels, inputs = 4 * channels, outputs = m.reduction.outputs;
  if (values != batch * height * width * channels) return "the stream has another number of channels or tokens";
  if (results != total * outputs) return "the merged tokens do not fit their memory";
  run_tasks((total + kRows - 1) / kRows, threads, [&](const std::function<int64_t()>& take) {
    Scratch scratch(kRows * (inputs + 4) + inputs * kNormRows * sizeof(float) + 192);
    uint8_t* codes = scratch.take<uint8_t>(kRows * inputs);
    float* corners = scratch.take<float>(kNormRows * inputs);
    int32_t* sums = scratch.take<int32_t>(kRows);
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t first = task * kRows, count = std::min(kRows, total - first);
      const auto gather = [&](int64_t r) {
        const int64_t token = first + r, index = token / (rows * columns), place = token % (rows * columns);
        float* gathered = corners + r % kNormRows * inputs;
        for (int64_t corner = 0; corner < 4; ++corner) {
          const int64_t y = place / columns * 2 + corner / 2, x = place % columns * 2 + corner % 2;
          float* target = gathered + corner * channels;
          if (y < height && x < width)
            std::memcpy(target, stream + ((index * height + y) * width + x) * channels, channels * sizeof(float));
          else
            std::memset(target, 0, channels * sizeof(float));
        }
        return gathered;
      };
      normalise(count, inputs, m.gamma, m.beta, m.epsilon, gather, NormToCodes{codes, inputs, floats(m.in_top)});
      multiply(m.reduction, 0, codes, count, sums, ToFloat{{out + first * outputs, outputs}});
    }
  });
  return nullptr;
}

// stream (batch, length, channels), normed, to out (batch, channels, length). Returns null, or what does not fit.
extern "C" const char* mixaq_output(const float* stream, const float* gamma, const float* beta, float epsilon,
                                    int64_t batch, int64_t length, int64_t channels, float* out, int64_t results,
                                    int threads) {
  using namespace mixaq;
  if (channels % 16) return "the channels are no multiple of 16";
  if (results != batch * channels * length) return "the map does not fit its memory";
  // rows of an odd number of cache lines: 16 of them, read at one column, lie in sets of their own
  const int64_t stride = channels + 16;
  // as many tokens as stay in L2: each channel is a page of its own to write to
  const int64_t tokens = std::max<int64_t>(kOutputBytes / (stride * sizeof(float)) / 16 * 16, 16);
  const int64_t pieces = (length + tokens - 1) / tokens;
  run_tasks(batch * pieces, threads, [&](const std::function<int64_t()>& take) {
    Scratch scratch(tokens * stride * sizeof(float));
    float* normed = scratch.take<float>(tokens * stride);
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t image = task / pieces, first = task % pieces * tokens;
      const int64_t count = std::min(tokens, length - first);
      normalise(
          count, channels, gamma, beta, epsilon,
          [&](int64_t t) { return stream + (image * length + first + t) * channels; },
          [&](int64_t t, int64_t column, Floats x) { store(normed + t * stride + column, x); });
      for (int64_t c = 0; c < channels; c += 4)
        for (int64_t t = 0; t < count; t += 16) {
          Floats of_channel[4];
          four_columns(normed + t * stride + c, stride, of_channel);
          for (int64_t i = 0; i < 4; ++i) {
            float* target = out + (image * channels + c + i) * length + first + t;
            // past the cache: nobody reads a map of megabytes before it has left it
            if (count - t >= 16 && reinterpret_cast<uintptr_t>(target) % 64 == 0)
              store_past_cache(target, of_channel[i]);
            else
              store_first(target, of_channel[i], std::min<int64_t>(count - t, 16));
          }
        }
    }
    _mm_sfence();
  });
  return nullptr;
}

// stream (rows, channels), normed, to codes (rows, channels), `results` of them; gamma and beta hold the grid. Returns
// null, or what does not fit.
extern "C" const char* mixaq_output_codes(const float* stream, const float* gamma, const float* beta, float epsilon,
                                          float top, int64_t rows, int64_t channels, uint8_t* out, int64_t results,
                                          int threads) {
  using namespace mixaq;
  if (channels % 16) return "the channels are no multiple of 16";
  if (results != rows * channels) return "the codes do not fit their memory";
  run_tasks((rows + kRows - 1) / kRows, threads, [&](const std::function<int64_t()>& take) {
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t first = task * kRows;
      normalise(
          std::min(kRows, rows - first), channels, gamma, beta, epsilon,
          [&](int64_t r) { return stream + (first + r) * channels; },
          NormToCodes{out + first * channels, channels, floats(top)});
    }
  });
  return nullptr;
}
