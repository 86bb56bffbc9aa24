// What lies between the blocks: patch embedding, patch merging, output norms.
#include "gemm.h"
#include "norm.h"
#include "parallel.h"

namespace mixaq {

constexpr int64_t kRows = 128;               // tokens worked on at once
constexpr int64_t kOutputBytes = 256 << 10;  // of normed tokens before they are transposed

struct Merging {
  Linear reduction;  // inputs ordered by corner, then channel
  const float *gamma, *beta;
  float in_top, epsilon;
  int64_t channels;
};

struct Embedding {
  Linear projection;
  float in_inverse, in_zero, in_top;
  const float* in_before;     // (in_channels,) added before rounding
  const float *gamma, *beta;  // null: no norm
  float epsilon;
  int64_t in_channels, patch;
};

inline float code_of(float x, float inverse, float zero, float top) {
  return std::min(std::max(__builtin_rintf(x * inverse) + zero, 0.0f), top);
}

// Codes of one patch, in the order of a convolution's weights; outside of the image lies zero.
void gather_patch(const Embedding& e, const float* image, int64_t height, int64_t width, int64_t top, int64_t left,
                  uint8_t* out) {
  for (int64_t c = 0; c < e.in_channels; ++c) {
    const auto code = [&](float value) {
      return static_cast<uint8_t>(code_of(value + e.in_before[c], e.in_inverse, e.in_zero, e.in_top));
    };
    const uint8_t blank = code(0);
    for (int64_t y = top; y < top + e.patch; ++y)
      for (int64_t x = left; x < left + e.patch; ++x)
        *out++ = y < height && x < width ? code(image[(c * height + y) * width + x]) : blank;
  }
}

// Four patches of 4 x 4 pixels side by side, all inside of the image: 16 pixels of a row are 4 codes of each.
void gather_four_patches(const Embedding& e, const float* image, int64_t height, int64_t width, int64_t top,
                         int64_t left, uint8_t* out) {
  const int64_t inputs = e.in_channels * 16;
  const __m512 inverse = _mm512_set1_ps(e.in_inverse), zero = _mm512_set1_ps(e.in_zero);
  const __m512 highest = _mm512_set1_ps(e.in_top);
  for (int64_t c = 0; c < e.in_channels; ++c)
    for (int64_t y = 0; y < 4; ++y) {
      const __m512 pixels = _mm512_loadu_ps(image + (c * height + top + y) * width + left);
      const __m512 scaled = _mm512_mul_ps(_mm512_add_ps(pixels, _mm512_set1_ps(e.in_before[c])), inverse);
      // the integer part first: rounding behind the zero point would decide ties another way
      const __m128i codes = to_codes(_mm512_add_ps(_mm512_roundscale_ps(scaled, kNearest), zero), highest);
      alignas(16) uint8_t bytes[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(bytes), codes);
      for (int64_t patch = 0; patch < 4; ++patch)
        std::memcpy(out + patch * inputs + (c * 4 + y) * 4, bytes + patch * 4, 4);
    }
}

// Codes of `count` patches, from the patch `first` of an image whose rows hold `columns` patches.
void gather_patches(const Embedding& e, const float* image, int64_t height, int64_t width, int64_t columns,
                    int64_t first, int64_t count, uint8_t* out) {
  const int64_t inputs = e.projection.inputs;
  for (int64_t patch = first; patch < first + count;) {
    const int64_t top = patch / columns * e.patch, left = patch % columns * e.patch;
    uint8_t* target = out + (patch - first) * inputs;
    if (e.patch == 4 && top + 4 <= height && left + 16 <= width && patch + 4 <= first + count) {
      gather_four_patches(e, image, height, width, top, left, target);
      patch += 4;
    } else {
      gather_patch(e, image, height, width, top, left, target);
      ++patch;
    }
  }
}

// Columns 0 to 3 of 16 rows.
inline void four_columns(const float* rows, int64_t stride, __m512 (&columns)[4]) {
  __m512 r[4];  // lane l of r[i] is row 4 l + i
  for (int i = 0; i < 4; ++i) {
    const auto four = [&](int lane) { return _mm_loadu_ps(rows + (4 * lane + i) * stride); };
    r[i] = _mm512_castps128_ps512(four(0));
    r[i] = _mm512_insertf32x4(r[i], four(1), 1);
    r[i] = _mm512_insertf32x4(r[i], four(2), 2);
    r[i] = _mm512_insertf32x4(r[i], four(3), 3);
  }
  const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
  const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
  const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
  const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
  columns[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
  columns[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
  columns[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
  columns[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
}

}  // namespace mixaq

// image (batch, in_channels, height, width) to out (batch * rows, channels).
extern "C" void mixaq_embed(const mixaq::Embedding* embedding, const float* image, int64_t batch, int64_t height,
                            int64_t width, float* out, int threads) {
  using namespace mixaq;
  const Embedding& e = *embedding;
  const int64_t rows = (height + e.patch - 1) / e.patch, columns = (width + e.patch - 1) / e.patch;
  const int64_t length = rows * columns, inputs = e.projection.inputs, outputs = e.projection.outputs;
  const int64_t pieces = (length + kRows - 1) / kRows;
  run_tasks(batch * pieces, threads, [&](const std::function<int64_t()>& take) {
    Scratch scratch(kRows * (inputs + 4) + 128);
    uint8_t* codes = scratch.take<uint8_t>(kRows * inputs);
    int32_t* sums = scratch.take<int32_t>(kRows);
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t index = task / pieces, patch = task % pieces * kRows, count = std::min(kRows, length - patch);
      const int64_t first = index * length + patch;
      gather_patches(e, image + index * e.in_channels * height * width, height, width, columns, patch, count, codes);
      multiply(e.projection, 0, codes, count, sums, ToFloat{out + first * outputs, outputs});
      for (int64_t r = 0; e.gamma && r < count; ++r) {
        float* row = out + (first + r) * outputs;
        norm_to_float(row, outputs, e.gamma, e.beta, e.epsilon, row);
      }
    }
  });
}

// stream (batch, height, width, channels) to out (batch, ceil(height / 2), ceil(width / 2), outputs).
extern "C" void mixaq_merge(const mixaq::Merging* merging, const float* stream, int64_t batch, int64_t height,
                            int64_t width, float* out, int threads) {
  using namespace mixaq;
  const Merging& m = *merging;
  const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2, total = batch * rows * columns;
  const int64_t channels = m.channels, inputs = 4 * channels, outputs = m.reduction.outputs;
  run_tasks((total + kRows - 1) / kRows, threads, [&](const std::function<int64_t()>& take) {
    Scratch scratch(kRows * (inputs + 4) + inputs * 4 + 192);
    uint8_t* codes = scratch.take<uint8_t>(kRows * inputs);
    float* corners = scratch.take<float>(inputs);
    int32_t* sums = scratch.take<int32_t>(kRows);
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t first = task * kRows, count = std::min(kRows, total - first);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t token = first + r, index = token / (rows * columns), place = token % (rows * columns);
        for (int64_t corner = 0; corner < 4; ++corner) {
          const int64_t y = place / columns * 2 + corner / 2, x = place % columns * 2 + corner % 2;
          float* target = corners + corner * channels;
          if (y < height && x < width)
            std::memcpy(target, stream + ((index * height + y) * width + x) * channels, channels * sizeof(float));
          else
            std::memset(target, 0, channels * sizeof(float));
        }
        norm_to_codes(corners, inputs, m.gamma, m.beta, m.epsilon, _mm512_set1_ps(m.in_top), codes + r * inputs);
      }
      multiply(m.reduction, 0, codes, count, sums, ToFloat{out + first * outputs, outputs});
    }
  });
}

// stream (batch, length, channels), normed, to out (batch, channels, length).
extern "C" void mixaq_output(const float* stream, const float* gamma, const float* beta, float epsilon, int64_t batch,
                             int64_t length, int64_t channels, float* out, int threads) {
  using namespace mixaq;
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
      for (int64_t t = 0; t < count; ++t)
        norm_to_float(stream + (image * length + first + t) * channels, channels, gamma, beta, epsilon,
                      normed + t * stride);
      for (int64_t c = 0; c < channels; c += 4)
        for (int64_t t = 0; t < count; t += 16) {
          const __mmask16 mask = count - t >= 16 ? 0xffff : (1u << (count - t)) - 1;
          __m512 of_channel[4];
          four_columns(normed + t * stride + c, stride, of_channel);
          for (int64_t i = 0; i < 4; ++i) {
            float* target = out + (image * channels + c + i) * length + first + t;
            // past the cache: nobody reads a map of megabytes before it has left it
            if (mask == 0xffff && reinterpret_cast<uintptr_t>(target) % 64 == 0)
              _mm512_stream_ps(target, of_channel[i]);
            else
              _mm512_mask_storeu_ps(target, mask, of_channel[i]);
          }
        }
    }
    _mm_sfence();
  });
}
