// Linear layers and convolutions outside of the blocks, from codes to floats or codes.
#include <limits>

#include "gemm.h"
#include "parallel.h"
#include "sizes.h"

namespace mixaq {

constexpr int64_t kPlaces = 96;  // worked on at once: their patches stay in L2

// See KernelLayer in ../layers.py; pairs are (rows, columns). A linear layer is a convolution of 1 x 1.
struct Layer {
  Linear product;    // inputs by place of the kernel, then channel; outputs in whole vectors
  int64_t channels;  // of a place
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t outputs;  // those that there are
  int32_t blank;    // code of 0, which pads
  int32_t to_codes;
  float low, top;  // bounds of the results: in codes, or the lower one in floats
};

struct Map {
  int64_t batch, height, width;
};

inline int64_t walked(const Layer& l, int axis, int64_t size) {
  return (size + 2 * l.padding[axis] - l.dilation[axis] * (l.kernel[axis] - 1) - 1) / l.stride[axis] + 1;
}

// Whether patches are the rows of the map themselves.
inline bool reads_rows(const Layer& l) {
  bool plain = true;
  for (int axis = 0; axis < 2; ++axis)
    plain &= l.kernel[axis] == 1 && l.stride[axis] == 1 && l.padding[axis] == 0;
  return plain;
}

// Codes of `count` patches, from the place `first` of the result (batch, rows, columns), of a map (batch, height, width,
// channels).
void gather(const Layer& l, const uint8_t* map, const Map& size, int64_t first, int64_t count, uint8_t* out) {
  const int64_t rows = walked(l, 0, size.height), columns = walked(l, 1, size.width);
  for (int64_t place = first; place < first + count; ++place) {
    const uint8_t* image = map + place / (rows * columns) * size.height * size.width * l.channels;
    const int64_t top = place / columns % rows * l.stride[0] - l.padding[0];
    const int64_t left = place % columns * l.stride[1] - l.padding[1];
    for (int64_t i = 0; i < l.kernel[0]; ++i)
      for (int64_t j = 0; j < l.kernel[1]; ++j, out += l.channels) {
        const int64_t y = top + i * l.dilation[0], x = left + j * l.dilation[1];
        if (y >= 0 && y < size.height && x >= 0 && x < size.width)
          std::memcpy(out, image + (y * size.width + x) * l.channels, l.channels);
        else
          std::memset(out, l.blank, l.channels);
      }
  }
}

struct BoundedCodes : CodeRows {
  Floats low, top;
  int columns(int64_t) const { return 0; }
  Ints finish(int64_t, int, Floats x) const { return rounded(max(x, low), top); }
};

struct BoundedFloats : ToFloat {
  Floats low;
  Floats finish(int64_t, int, Floats x) const { return max(x, low); }
};

// All patches by `work(patches, count, result, stride)`, where a result of whole vectors fits.
template <typename T, class Work>
void run_layer(const Layer& l, const uint8_t* map, const Map& size, T* out, int threads, const Work& work) {
  const int64_t places = size.batch * walked(l, 0, size.height) * walked(l, 1, size.width);
  const int64_t inputs = l.product.inputs, padded = l.product.outputs;
  run_tasks((places + kPlaces - 1) / kPlaces, threads, [&](const std::function<int64_t()>& take) {
    Scratch scratch(kPlaces * (inputs + padded * sizeof(T) + sizeof(int32_t)) + 3 * 64);
    uint8_t* patches = scratch.take<uint8_t>(kPlaces * inputs);
    T* results = scratch.take<T>(kPlaces * padded);
    int32_t* sums = scratch.take<int32_t>(kPlaces);
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t first = task * kPlaces, count = std::min(kPlaces, places - first);
      const uint8_t* a = map + first * inputs;
      if (!reads_rows(l)) {
        gather(l, map, size, first, count, patches);
        a = patches;
      }
      T* target = out + first * l.outputs;
      work(a, count, sums, padded == l.outputs ? target : results);
      for (int64_t r = 0; padded != l.outputs && r < count; ++r)
        std::memcpy(target + r * l.outputs, results + r * padded, l.outputs * sizeof(T));
    }
  });
}

}  // namespace mixaq

MIXAQ_SIZE_OF(Layer)

// map (batch, height, width, channels), `values` codes, to out (batch, height', width', outputs), `results` floats or
// codes. Returns null, or what does not fit.
extern "C" const char* mixaq_layer(const mixaq::Layer* layer, const uint8_t* map, int64_t values, int64_t batch,
                                   int64_t height, int64_t width, void* out, int64_t results, int threads) {
  using namespace mixaq;
  const Layer& l = *layer;
  const Map size{batch, height, width};
  const int64_t rows = walked(l, 0, height), columns = walked(l, 1, width), stride = l.product.outputs;
  if (rows < 1 || columns < 1) return "the kernel is larger than the map";
  if (values != batch * height * width * l.channels) return "the map has another number of channels or places";
  if (results != batch * rows * columns * l.outputs) return "the results do not fit their memory";
  if (l.to_codes)
    run_layer(l, map, size, static_cast<uint8_t*>(out), threads,
              [&](const uint8_t* a, int64_t count, int32_t* sums, uint8_t* target) {
                multiply(l.product, 0, a, count, sums,
                         BoundedCodes{{target, stride, nullptr}, floats(l.low), floats(l.top)});
              });
  else
    run_layer(l, map, size, static_cast<float*>(out), threads,
              [&](const uint8_t* a, int64_t count, int32_t* sums, float* target) {
                multiply(l.product, 0, a, count, sums, BoundedFloats{{{target, stride}}, floats(l.low)});
              });
  return nullptr;
}
