// Patch embedding of float images, and of bytes that have not been normalised.
#include "gemm.h"
#include "norm.h"
#include "parallel.h"
#include "sizes.h"

namespace mixaq {

constexpr int64_t kRows = 128;  // tokens worked on at once

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
  const Floats inverse = floats(e.in_inverse), zero = floats(e.in_zero);
  const Floats highest = floats(e.in_top);
  for (int64_t c = 0; c < e.in_channels; ++c)
    for (int64_t y = 0; y < 4; ++y) {
      const Floats pixels = load(image + (c * height + top + y) * width + left);
      const Floats scaled = mul(add(pixels, floats(e.in_before[c])), inverse);
      // the integer part first: rounding behind the zero point would decide ties another way
      alignas(16) uint8_t bytes[16];
      store(bytes, to_codes(add(nearest(scaled), zero), highest));
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

// An image as it comes from a file: bytes at distances that may be those of (channels, height, width) or (height, width,
// channels).
struct ByteImage {
  const uint8_t* pixels;
  int64_t height, width, channel_step, row_step, column_step;
};

// Codes of bytes: normalising and rounding are one look into a table. Outside of an image lies `blank`, the code of 0.
struct ByteCodes {
  const uint8_t *table, *blank;  // (in_channels, 256), (in_channels,)
};

void gather_bytes(const Embedding& e, const ByteCodes& codes, const ByteImage& image, int64_t columns, int64_t first,
                  int64_t count, uint8_t* out) {
  for (int64_t patch = first; patch < first + count; ++patch) {
    const int64_t top = patch / columns * e.patch, left = patch % columns * e.patch;
    const int64_t inside = std::min(std::max<int64_t>(image.width - left, 0), e.patch);
    for (int64_t c = 0; c < e.in_channels; ++c) {
      const uint8_t *table = codes.table + 256 * c, blank = codes.blank[c];
      for (int64_t y = top; y < top + e.patch; ++y, out += e.patch) {
        const uint8_t* row = image.pixels + c * image.channel_step + y * image.row_step + left * image.column_step;
        const int64_t seen = y < image.height ? inside : 0;
        for (int64_t x = 0; x < seen; ++x) out[x] = table[row[x * image.column_step]];
        for (int64_t x = seen; x < e.patch; ++x) out[x] = blank;
      }
    }
  }
}

// Tokens of a batch; gather(image, columns, first patch, patches, codes) brings the codes of an image's patches.
template <typename Gather>
void embed_batch(const Embedding& e, int64_t batch, int64_t rows, int64_t columns, float* out, int threads,
                 const Gather& gather) {
  const int64_t length = rows * columns, inputs = e.projection.inputs, outputs = e.projection.outputs;
  const int64_t pieces = (length + kRows - 1) / kRows;
  run_tasks(batch * pieces, threads, [&](const std::function<int64_t()>& take) {
    Scratch scratch(kRows * (inputs + 4) + 128);
    uint8_t* codes = scratch.take<uint8_t>(kRows * inputs);
    int32_t* sums = scratch.take<int32_t>(kRows);
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t index = task / pieces, patch = task % pieces * kRows, count = std::min(kRows, length - patch);
      const int64_t first = index * length + patch;
      gather(index, columns, patch, count, codes);
      multiply(e.projection, 0, codes, count, sums, ToFloat{{out + first * outputs, outputs}});
      const auto at = [&](int64_t r) { return out + (first + r) * outputs; };
      if (e.gamma)
        normalise(count, outputs, e.gamma, e.beta, e.epsilon, at,
                  [&](int64_t r, int64_t column, Floats x) { store(at(r) + column, x); });
    }
  });
}

}  // namespace mixaq

MIXAQ_SIZE_OF(Embedding)
MIXAQ_SIZE_OF(ByteImage)

// image (batch, in_channels, height, width), `values` numbers, to out (batch * rows, channels), `results` numbers.
// Returns null, or what does not fit.
extern "C" const char* mixaq_embed(const mixaq::Embedding* embedding, const float* image, int64_t values, int64_t batch,
                                   int64_t height, int64_t width, float* out, int64_t results, int threads) {
  using namespace mixaq;
  const Embedding& e = *embedding;
  const int64_t rows = (height + e.patch - 1) / e.patch, columns = (width + e.patch - 1) / e.patch;
  if (values != batch * e.in_channels * height * width) return "the images have another number of channels or pixels";
  if (results != batch * rows * columns * e.projection.outputs) return "the embedded tokens do not fit their memory";
  embed_batch(e, batch, rows, columns, out, threads, [&](int64_t index, auto... place) {
    gather_patches(e, image + index * e.in_channels * height * width, height, width, place...);
  });
  return nullptr;
}

// The same from `batch` images of bytes, whose common size with what pads them is (height, width).
extern "C" const char* mixaq_embed_bytes(const mixaq::Embedding* embedding, const mixaq::ByteImage* images,
                                         const uint8_t* table, const uint8_t* blank, int64_t batch, int64_t height,
                                         int64_t width, float* out, int64_t results, int threads) {
  using namespace mixaq;
  const Embedding& e = *embedding;
  const ByteCodes codes{table, blank};
  const int64_t rows = (height + e.patch - 1) / e.patch, columns = (width + e.patch - 1) / e.patch;
  if (results != batch * rows * columns * e.projection.outputs) return "the embedded tokens do not fit their memory";
  embed_batch(e, batch, rows, columns, out, threads,
              [&](int64_t index, auto... place) { gather_bytes(e, codes, images[index], place...); });
  return nullptr;
}
