// Ranking and choosing windows: the answers of windows/importance.py (L2), geometry.py and assignment.py, without the
// maps that torch's operations need in between.
#include <cmath>
#include <limits>

#include "parallel.h"
#include "simd.h"
#include "sizes.h"

namespace mixaq {

constexpr int64_t kTokens = 1024;  // whose means are one task
constexpr int kKinds = 4;          // attention masks: interior, last column, last row, corner

// A map cut into windows as geometry.py does: padded at the bottom and right, rolled up and left by `shift`.
struct Grid {
  int64_t height, width, window, shift;
  int64_t columns() const { return (width + window - 1) / window; }
  int64_t rows() const { return (height + window - 1) / window; }
  int64_t count() const { return rows() * columns(); }
  int kind(int64_t number) const {
    if (!shift) return 0;
    return (number % columns() == columns() - 1) + 2 * (number / columns() == rows() - 1);
  }
  // Calls visit(place in the window, row of the stream) for each token of a window that is not padding.
  template <class Visit>
  void tokens(int64_t number, const Visit& visit) const {
    const int64_t padded_height = rows() * window, padded_width = columns() * window;
    const int64_t top = number / columns() * window + shift, left = number % columns() * window + shift;
    for (int64_t i = 0; i < window; ++i) {
      const int64_t y = top + i < padded_height ? top + i : top + i - padded_height;
      if (y >= height) continue;
      for (int64_t j = 0; j < window; ++j) {
        const int64_t x = left + j < padded_width ? left + j : left + j - padded_width;
        if (x < width) visit(i * window + j, y * width + x);
      }
    }
  }
};

}  // namespace mixaq

MIXAQ_SIZE_OF(Grid)

// Mean absolute activation of each row of stream (tokens, channels), to out (tokens,). Returns null, or what does not fit.
extern "C" const char* mixaq_token_means(const float* stream, int64_t tokens, int64_t channels, float* out,
                                         int threads) {
  using namespace mixaq;
  if (channels % 16) return "the channels are no multiple of 16";
  run_tasks((tokens + kTokens - 1) / kTokens, threads, [&](const std::function<int64_t()>& take) {
    for (int64_t task = take(); task >= 0; task = take())
      for (int64_t t = task * kTokens; t < std::min(tokens, (task + 1) * kTokens); ++t) {
        Floats sum = floats(0);
        for (int64_t c = 0; c < channels; c += 16)
          sum = add(sum, magnitude(load(stream + t * channels + c)));
        out[t] = total(sum) / channels;
      }
  });
  return nullptr;
}

// Scores (batch, windows) of one grid from the means (batch, height * width) of its tokens, `sign` times the L2 norm;
// where content (batch, height * width) is 0 all over a window, it is blank and comes last. `order`: best first, the
// lower number first among equals.
extern "C" void mixaq_rank(const float* means, const float* content, int64_t batch, const mixaq::Grid* grid, float sign,
                           float* scores, uint8_t* blank, int64_t* order) {
  using namespace mixaq;
  const int64_t count = grid->count(), length = grid->height * grid->width;
  std::vector<float> keys(count);
  for (int64_t image = 0; image < batch; ++image) {
    for (int64_t number = 0; number < count; ++number) {
      float squares = 0, most = 0;
      grid->tokens(number, [&](int64_t, int64_t row) {
        const float mean = means[image * length + row];
        squares += mean * mean;
        most = std::max(most, content[image * length + row]);
      });
      const int64_t place = image * count + number;
      scores[place] = sign * std::sqrt(squares);
      blank[place] = most == 0;
      // NaN, which is no number to sort by, comes first as in torch
      const float infinity = std::numeric_limits<float>::infinity();
      keys[number] = blank[place] ? -infinity : std::isnan(scores[place]) ? infinity : scores[place];
    }
    int64_t* own = order + image * count;
    for (int64_t number = 0; number < count; ++number) own[number] = number;
    std::stable_sort(own, own + count, [&](int64_t a, int64_t b) { return keys[a] > keys[b]; });
  }
}

// The kept windows of a batch, from the front of each image's `order` (batch, windows): `high` of the high branch, then
// `low` of the low one, those of one attention mask side by side. Writes the row of the stream of each real token, its
// slot among the kept windows' tokens, and how many windows of each kind the branches have (2, kinds). Returns the
// number of real tokens; high_tokens is how many of them are in the high branch.
extern "C" int64_t mixaq_assign(const int64_t* order, int64_t batch, const mixaq::Grid* grid, int64_t high, int64_t low,
                                int64_t* rows, int64_t* slots, int64_t* kinds, int64_t* high_tokens) {
  using namespace mixaq;
  const int64_t count = grid->count(), length = grid->height * grid->width, tokens = grid->window * grid->window;
  const int64_t edges[3] = {0, high, high + low};
  std::fill(kinds, kinds + 2 * kKinds, 0);
  int64_t used = 0, slot = 0;
  for (int branch = 0; branch < 2; ++branch) {
    for (int kind = 0; kind < (grid->shift ? kKinds : 1); ++kind)
      for (int64_t image = 0; image < batch; ++image)
        for (int64_t place = edges[branch]; place < edges[branch + 1]; ++place) {
          const int64_t number = order[image * count + place];
          if (grid->kind(number) != kind) continue;
          grid->tokens(number, [&](int64_t token, int64_t row) {
            rows[used] = image * length + row;
            slots[used++] = slot + token;
          });
          slot += tokens;
          ++kinds[branch * kKinds + kind];
        }
    if (branch == 0) *high_tokens = used;
  }
  return used;
}
