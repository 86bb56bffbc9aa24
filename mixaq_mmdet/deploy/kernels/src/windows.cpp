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

// Where the images (batch, channels, height, width) have content, by patch: out (batch, patches), 1 or 0 where all of a
// patch is 0. Returns whether all numbers are finite. One thread: it reads each number once, and waking others takes
// longer than that.
extern "C" int mixaq_look(const float* images, int64_t batch, int64_t channels, int64_t height, int64_t width,
                          int64_t patch, float* out) {
  using namespace mixaq;
  const int64_t rows = (height + patch - 1) / patch, columns = (width + patch - 1) / patch;
  const Ints magnitude_bits = ints(0x7fffffff);
  int32_t highest = 0;
  Ints most = ints(0);
  std::vector<int32_t> seen(columns * patch + 16);  // of each column of a row of patches, what any of its numbers has
  for (int64_t image = 0; image < batch; ++image)
    for (int64_t row = 0; row < rows; ++row) {
      std::fill(seen.begin(), seen.end(), 0);
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t y = row * patch; y < std::min(height, (row + 1) * patch); ++y) {
          const float* line = images + ((image * channels + c) * height + y) * width;
          int64_t x = 0;
          for (; x + 16 <= width; x += 16) {
            const Ints number = both(load_ints(line + x), magnitude_bits);
            most = max(most, number);
            store(seen.data() + x, either(load_ints(seen.data() + x), number));
          }
          for (; x < width; ++x) {
            int32_t number;
            std::memcpy(&number, line + x, sizeof(number));
            number &= 0x7fffffff;
            highest = std::max(highest, number);
            seen[x] |= number;
          }
        }
      for (int64_t column = 0; column < columns; ++column) {
        int32_t any = 0;
        for (int64_t i = 0; i < patch; ++i) any |= seen[column * patch + i];
        out[(image * rows + row) * columns + column] = any != 0;
      }
    }
  int32_t lanes[16];
  store(lanes, most);
  for (int32_t lane : lanes) highest = std::max(highest, lane);
  constexpr int32_t kInfinity = 0x7f800000;  // NaN is above it
  return highest < kInfinity;
}

// Ranks the windows of a stream (batch, height, width, channels), those of the grid that is not shifted and then those
// of the one shifted by half a window. The score of a window is `sign` times the L2 norm of its tokens' mean absolute
// activations; where content (batch, height * width) is 0 all over a window, it is blank and comes last. Writes means
// (batch, height * width) and, for each grid, scores, blank and order (batch, windows): best first, the lower number
// first among equals. Returns null, or what does not fit.
extern "C" const char* mixaq_rank(const float* stream, int64_t channels, const float* content, int64_t batch,
                                  int64_t height, int64_t width, int64_t window, float sign, float* means,
                                  float* scores, uint8_t* blank, int64_t* order, int threads) {
  using namespace mixaq;
  if (channels % 16) return "the channels are no multiple of 16";
  const int64_t length = height * width, total_tokens = batch * length;
  run_tasks((total_tokens + kTokens - 1) / kTokens, threads, [&](const std::function<int64_t()>& take) {
    for (int64_t task = take(); task >= 0; task = take())
      for (int64_t t = task * kTokens; t < std::min(total_tokens, (task + 1) * kTokens); ++t) {
        Floats sum = floats(0);
        for (int64_t c = 0; c < channels; c += 16)
          sum = add(sum, magnitude(load(stream + t * channels + c)));
        means[t] = total(sum) / channels;
      }
  });
  const Grid grids[2] = {{height, width, window, 0}, {height, width, window, window / 2}};
  const int64_t count = grids[0].count();
  run_tasks(2 * batch, threads, [&](const std::function<int64_t()>& take) {
    std::vector<float> keys(count);
    for (int64_t task = take(); task >= 0; task = take()) {
      const Grid& grid = grids[task / batch];
      const int64_t first = task % batch * length;
      for (int64_t number = 0; number < count; ++number) {
        float squares = 0, most = 0;
        grid.tokens(number, [&](int64_t, int64_t row) {
          squares += means[first + row] * means[first + row];
          most = std::max(most, content[first + row]);
        });
        const int64_t place = task * count + number;
        scores[place] = sign * std::sqrt(squares);
        blank[place] = most == 0;
        // NaN, which is no number to sort by, comes first as in torch
        const float infinity = std::numeric_limits<float>::infinity();
        keys[number] = blank[place] ? -infinity : std::isnan(scores[place]) ? infinity : scores[place];
      }
      int64_t* own = order + task * count;
      for (int64_t number = 0; number < count; ++number) own[number] = number;
      std::stable_sort(own, own + count, [&](int64_t a, int64_t b) { return keys[a] > keys[b]; });
    }
  });
  return nullptr;
}

// The kept windows of a batch, from the front of each image's `order` (batch, windows): `high` of the high branch, then
// `low` of the low one, those of one attention mask side by side, in the order of the grid. Writes the row of the stream
// of each real token, its slot among the kept windows' tokens, and how many windows of each kind the branches have (2,
// kinds). Returns the number of real tokens; high_tokens is how many of them are in the high branch.
extern "C" int64_t mixaq_assign(const int64_t* order, int64_t batch, const mixaq::Grid* grid, int64_t high, int64_t low,
                                int64_t* rows, int64_t* slots, int64_t* kinds, int64_t* high_tokens) {
  using namespace mixaq;
  const int64_t count = grid->count(), length = grid->height * grid->width, tokens = grid->window * grid->window;
  const int64_t edges[3] = {0, high, high + low};
  std::fill(kinds, kinds + 2 * kKinds, 0);
  int64_t used = 0, slot = 0;
  std::vector<int64_t> of_grid(order, order + batch * count);  // neighbours share pages and lines of the stream
  for (int64_t image = 0; image < batch; ++image)
    for (int branch = 0; branch < 2; ++branch)
      std::sort(of_grid.begin() + image * count + edges[branch], of_grid.begin() + image * count + edges[branch + 1]);
  for (int branch = 0; branch < 2; ++branch) {
    for (int kind = 0; kind < (grid->shift ? kKinds : 1); ++kind)
      for (int64_t image = 0; image < batch; ++image)
        for (int64_t place = edges[branch]; place < edges[branch + 1]; ++place) {
          const int64_t number = of_grid[image * count + place];
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
