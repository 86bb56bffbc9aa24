// Masks of boxes pasted into the image: bilinear samples of a small mask, compared with a threshold.
//
// Sampling is separable, too: rows of the mask are stretched to the width of the box once, then pixels lie between two.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../parallel.h"
#include "../sizes.h"

namespace mixaq {

struct Pasting {
  const float *masks, *boxes;  // (count, mask_height, mask_width); (count, 4)
  int64_t count, mask_height, mask_width, height, width;
  float threshold;
};

namespace {

// Pixels of one axis: each lies between two cells of a mask that has got a border of zeros, with a weight of each.
struct Samples {
  int32_t* cell;
  float *near, *far;
  int64_t begin, end;  // pixels that the box reaches

  // In the order of mmdet's and torch's float operations.
  void place(float from, float to, int64_t cells, int64_t pixels) {
    const float last = static_cast<float>(pixels);
    begin = static_cast<int64_t>(std::min(std::max(std::floor(from) - 1.f, 0.f), last));
    end = static_cast<int64_t>(std::min(std::max(std::ceil(to) + 1.f, 0.f), last));
    const float half = static_cast<float>(cells) / 2.f;
    for (int64_t i = begin; i < end; ++i) {
      float at = (static_cast<float>(i) + .5f - from) / (to - from) * 2.f - 1.f;
      if (std::isinf(at)) at = 0.f;  // a box without an extent shows the middle of its mask
      at = (at + 1.f) * half - .5f;
      const float below = std::floor(at);
      const bool seen = below >= -1.f && below < static_cast<float>(cells);  // not where it is no number
      cell[i - begin] = seen ? static_cast<int32_t>(below) + 1 : 0;
      near[i - begin] = seen ? 1.f - (at - below) : 0.f;
      far[i - begin] = seen ? at - below : 0.f;
    }
  }
};

// Work memory of a thread.
struct Canvas {
  explicit Canvas(const Pasting& call)
      : scratch(4 * (3 * (call.width + call.height) + call.mask_width + 2 + (call.mask_height + 2) * call.width) + 512) {
    for (auto [samples, size] : {std::pair{&xs, call.width}, std::pair{&ys, call.height}}) {
      samples->cell = scratch.take<int32_t>(size);
      samples->near = scratch.take<float>(size);
      samples->far = scratch.take<float>(size);
    }
    line = scratch.take<float>(call.mask_width + 2);
    line[0] = line[call.mask_width + 1] = 0.f;
    rows = scratch.take<float>((call.mask_height + 2) * call.width);
    std::fill(rows, rows + call.width, 0.f);
    std::fill(rows + (call.mask_height + 1) * call.width, rows + (call.mask_height + 2) * call.width, 0.f);
  }
  Scratch scratch;
  Samples xs, ys;
  float *line, *rows;  // of the mask, and of the mask as wide as its box
};

void paste(const Pasting& call, Canvas& canvas, int64_t index, uint8_t* image) {
  const float* box = call.boxes + 4 * index;
  const float* mask = call.masks + index * call.mask_height * call.mask_width;
  Samples &xs = canvas.xs, &ys = canvas.ys;
  xs.place(box[0], box[2], call.mask_width, call.width);
  ys.place(box[1], box[3], call.mask_height, call.height);
  const int64_t width = xs.end - xs.begin;
  for (int64_t row = 0; row < call.mask_height; ++row) {
    std::copy(mask + row * call.mask_width, mask + (row + 1) * call.mask_width, canvas.line + 1);
    float* target = canvas.rows + (row + 1) * call.width;
    for (int64_t x = 0; x < width; ++x)
      target[x] = xs.near[x] * canvas.line[xs.cell[x]] + xs.far[x] * canvas.line[xs.cell[x] + 1];
  }
  for (int64_t y = 0; y < ys.end - ys.begin; ++y) {
    const float *upper = canvas.rows + ys.cell[y] * call.width, *lower = upper + call.width;
    const float near = ys.near[y], far = ys.far[y], threshold = call.threshold;
    uint8_t* pixels = image + (ys.begin + y) * call.width + xs.begin;
    for (int64_t x = 0; x < width; ++x) pixels[x] = near * upper[x] + far * lower[x] >= threshold;
  }
}

}  // namespace
}  // namespace mixaq

MIXAQ_SIZE_OF(Pasting)

// Writes the pixels that the boxes reach to (count, height, width), whose others are 0.
extern "C" void mixaq_paste_masks(const mixaq::Pasting* pasting, uint8_t* images, int threads) {
  using namespace mixaq;
  const Pasting& call = *pasting;
  run_tasks(call.count, threads, [&](const std::function<int64_t()>& take) {
    Canvas canvas(call);
    for (int64_t task = take(); task >= 0; task = take())
      paste(call, canvas, task, images + task * call.height * call.width);
  });
}
