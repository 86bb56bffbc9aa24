// A whole Swin block, a few windows at a time, so that all in-between values stay in a core's cache:
// norm -> qkv -> attention -> proj -> residual -> norm -> fc1 -> GELU -> fc2 -> residual.
#include "attention.h"
#include "gemm.h"
#include "norm.h"
#include "parallel.h"
#include "sizes.h"

#include <unistd.h>

namespace mixaq {

// See BlockWeights in ../../layouts.py; index 0 is the high branch, 1 the low one.
struct Block {
  Linear qkv, proj, fc1, fc2;
  const float *gamma1[2], *beta1[2], *gamma2[2], *beta2[2];
  const float* qkv_top[2];
  const uint8_t* pad_codes[2];  // q, k, v codes of a padding token; of each position where grids are learned
  const Learned* learned[2];    // null: every grid is a step and a zero point
  const float* bias;            // (kinds, heads, tokens, 16 * vectors)
  Attention attention[2];
  float qkv_in_top[2], fc1_in_top[2], fc2_in_inverse[2], fc2_in_zero[2], fc2_in_top[2];
  float epsilon;
  int64_t channels, heads, tokens, vectors, kinds;
};

// Windows of a run. `rows` are rows of the stream, `slots` places among the windows' tokens (null: no padding).
struct Windows {
  const int64_t *rows, *slots;
  int64_t num_rows, count, high;
  std::vector<int32_t> kinds;  // attention mask of each window
};

// Windows `start` to `stop` share one attention mask.
struct Segment {
  int64_t start, stop, kind;
};

// What does not fit, or null: what is read and written lies at places that `rows` and `slots` name.
const char* misfit(const Windows& windows, int64_t stream_rows, int64_t tokens) {
  if (windows.high < 0 || windows.high > windows.count) return "there are more high windows than windows";
  const uint64_t slots = windows.count * tokens;
  if (!windows.slots && windows.num_rows != windows.count * tokens) return "windows without padding lack tokens";
  bool outside = false, unordered = false;
  for (int64_t r = 0; r < windows.num_rows; ++r)
    outside |= static_cast<uint64_t>(windows.rows[r]) >= static_cast<uint64_t>(stream_rows);
  if (outside) return "a row lies outside of the stream";
  for (int64_t r = 0; windows.slots && r < windows.num_rows; ++r) {
    outside |= static_cast<uint64_t>(windows.slots[r]) >= slots;
    unordered |= r && windows.slots[r] <= windows.slots[r - 1];
  }
  return outside ? "a slot lies outside of the windows" : unordered ? "slots are not in order" : nullptr;
}

// Where tests look: copies of what lies between the products, for all rows of a run (see ../trace.py).
struct Trace {
  uint8_t *qkv_in, *qkv, *proj_in, *fc1_in, *fc2_in;
  uint16_t* probabilities;  // (windows, heads, tokens, kMaxTokens)
};

// Bytes of a chunk's hidden codes: beside them L2 holds a panel, qkv and the rows of the stream. A block whose weights do
// not stay in L2 reads them anew for every chunk, so that its chunks are larger where L2 has room.
inline int64_t hidden_bytes(const Linear& fc1) {
  static const int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
  constexpr int64_t kLeast = 400 << 10;
  const bool weights_stay = 3 * fc1.inputs * fc1.outputs < cache / 2;  // fc1 and fc2 are two of three thirds
  return std::max(weights_stay ? cache / 5 : cache * 9 / 20, kLeast);
}

struct Chunk {
  int64_t first, last;          // windows
  int64_t first_row, last_row;  // among the run's rows
  int branch;
};

// Fewer rows do not pay for reading the weights once more; matrix tiles take a quarter of the time for them.
inline int64_t least_rows() { return matrix_tiles() ? 128 : 32; }

// Pieces of about equally many rows, at most `per_chunk` windows' worth, of each branch a multiple of the threads: else
// the last ones wait for one. The last round is cut in halves, because cores of a shared machine differ in speed. Where
// windows are mostly padding, a piece has up to twice as many of them.
std::vector<Chunk> cut(const Windows& windows, int64_t tokens, int64_t per_chunk, int64_t threads) {
  std::vector<int64_t> row_at(windows.count + 1, 0);  // the first row of each window
  for (int64_t window = 0, row = 0; window < windows.count; row_at[++window] = row)
    if (windows.slots)
      while (row < windows.num_rows && windows.slots[row] < (window + 1) * tokens) ++row;
    else
      row += tokens;
  std::vector<Chunk> chunks;
  const int64_t edges[3] = {0, windows.high, windows.count};
  for (int branch = 0; branch < 2; ++branch) {
    const int64_t end = edges[branch + 1], begin_row = row_at[edges[branch]], rows = row_at[end] - begin_row;
    const int64_t rounds = (rows + per_chunk * tokens * threads - 1) / (per_chunk * tokens * threads);
    const bool halved = end == windows.count && threads > 1 && rows >= 2 * least_rows() * rounds * threads;
    const int64_t shares = 2 * rounds * threads, in_halves = halved ? 2 * threads : 0;
    int64_t first = edges[branch];
    for (int64_t share = 0; first < end;) {
      share += share < shares - in_halves ? 2 : 1;
      const int64_t until = begin_row + rows * share / std::max<int64_t>(shares, 1);
      int64_t last = first + 1;
      while (last < end && last - first < 2 * per_chunk && row_at[last] < until) ++last;
      chunks.push_back({first, last, row_at[first], row_at[last], branch});
      first = last;
    }
  }
  return chunks;
}

constexpr int64_t kRowsAhead = 8;  // rows of a window lie apart, so that they are asked for before they are read

struct Buffers {
  uint8_t *codes, *qkv, *hidden;
  int64_t* places;
  int32_t *row_sums, *positions;
  float* row_scale;
  void* head;
};

inline void copy_rows(uint8_t* target, int64_t first_row, const uint8_t* source, int64_t rows, int64_t width) {
  std::memcpy(target + first_row * width, source, rows * width);
}

void attend(const Block& b, const Windows& windows, const Chunk& chunk, const Buffers& m, const Trace* trace) {
  const int64_t head_channels = b.channels / b.heads, row_bias = 16 * b.vectors;
  const Learned* learned = b.learned[chunk.branch];
  const HeadFunction run_head =
      learned ? head_function<true>(b.vectors, head_channels) : head_function<false>(b.vectors, head_channels);
  const int64_t num_rows = chunk.last_row - chunk.first_row;
  int64_t query = 0;
  for (int64_t window = 0; window < chunk.last - chunk.first; ++window) {
    const int64_t begin = window * b.tokens, first_query = query;
    if (windows.slots)
      while (query < num_rows && m.places[query] < begin + b.tokens) ++query;
    else
      query += b.tokens;
    const int64_t kind = windows.kinds[chunk.first + window];
    for (int64_t head = 0; head < b.heads; ++head) {
      const int64_t place = ((chunk.first + window) * b.heads + head) * b.tokens, first = head * head_channels;
      const LearnedHead of_head{learned, learned ? learned->proj_in_before + first : nullptr};
      run_head(b.attention[chunk.branch], m.head, b.tokens, m.qkv + begin * 3 * b.channels, b.channels, first,
               windows.slots ? m.places + first_query : nullptr, begin, query - first_query,
               b.bias + (kind * b.heads + head) * b.tokens * row_bias, m.codes + first_query * b.channels,
               trace ? trace->probabilities + place * kMaxTokens : nullptr, of_head);
    }
  }
}

void run_chunk(const Block& b, const Windows& windows, const Chunk& chunk, float* stream, const Buffers& m,
               const Trace* trace) {
  const int64_t width = b.channels, hidden = b.fc1.outputs, branch = chunk.branch;
  const int64_t num_rows = chunk.last_row - chunk.first_row, num_slots = (chunk.last - chunk.first) * b.tokens;
  const int64_t* rows = windows.rows + chunk.first_row;
  const auto steps_of_rows = [&](const Steps& steps) {
    spread_rows(steps.step, m.positions, num_rows, m.row_scale);
    return m.row_scale;
  };
  const auto norm = [&](const float* gamma, const float* beta, float highest, const Steps* steps, float zero) {
    const auto source = [&](int64_t r) {
      const float* ahead = stream + rows[std::min(r + kRowsAhead, num_rows - 1)] * width;
      for (int64_t c = 0; c < width; c += kLine / sizeof(float)) ask_for(ahead + c);
      return stream + rows[r] * width;
    };
    const NormToCodes write{m.codes, width, floats(highest)};
    if (steps)  // neither gamma nor beta is divided by a step of the row's own; beta holds the offset before rounding
      normalise(num_rows, width, gamma, beta, b.epsilon, source, [&](int64_t r, int64_t column, Floats x) {
        write(r, column, fma(x, floats(steps->inverse[m.positions[r]]), floats(zero)));
      });
    else
      normalise(num_rows, width, gamma, beta, b.epsilon, source, write);
  };

  if (windows.slots)
    for (int64_t r = 0; r < num_rows; ++r) m.places[r] = windows.slots[chunk.first_row + r] - chunk.first * b.tokens;
  const int64_t* places = windows.slots ? m.places : nullptr;
  const Learned* l = b.learned[branch];
  for (int64_t r = 0; l && r < num_rows; ++r) m.positions[r] = (places ? places[r] : r) % b.tokens;

  norm(b.gamma1[branch], b.beta1[branch], b.qkv_in_top[branch], l ? &l->qkv_in : nullptr, l ? l->qkv_in_zero : 0);
  if (trace) copy_rows(trace->qkv_in, chunk.first_row, m.codes, num_rows, width);
  for (int64_t slot = 0, r = 0; places && slot < num_slots; ++slot) {
    if (r < num_rows && places[r] == slot)
      ++r;
    else
      std::memcpy(m.qkv + slot * 3 * width, b.pad_codes[branch] + (l ? slot % b.tokens * 3 * width : 0), 3 * width);
  }
  if (l)
    multiply(b.qkv, branch, m.codes, num_rows, m.row_sums,
             LearnedToCodes{{m.qkv, 3 * width, places}, b.qkv_top[branch], l->qkv_zero, m.positions,
                            {l->q.inverse, l->k.inverse, l->v.inverse}, width},
             steps_of_rows(l->qkv_in));
  else
    multiply(b.qkv, branch, m.codes, num_rows, m.row_sums, ToCodes{{m.qkv, 3 * width, places}, b.qkv_top[branch]});
  if (trace) copy_rows(trace->qkv, chunk.first * b.tokens, m.qkv, num_slots, 3 * width);
  attend(b, windows, chunk, m, trace);
  if (trace) copy_rows(trace->proj_in, chunk.first_row, m.codes, num_rows, width);
  multiply(b.proj, branch, m.codes, num_rows, m.row_sums, AddToStream{{stream, width}, rows},
           l ? steps_of_rows(l->proj_in) : nullptr);

  norm(b.gamma2[branch], b.beta2[branch], b.fc1_in_top[branch], l ? &l->fc1_in : nullptr, l ? l->fc1_in_zero : 0);
  if (trace) copy_rows(trace->fc1_in, chunk.first_row, m.codes, num_rows, width);
  const CodeRows hidden_rows{m.hidden, hidden, nullptr};
  const float zero = b.fc2_in_zero[branch];
  const Floats top = floats(b.fc2_in_top[branch]);
  if (l)
    multiply(b.fc1, branch, m.codes, num_rows, m.row_sums,
             LearnedGeluToCodes{hidden_rows, l->fc2_in_before, m.positions, l->fc2_in.inverse, floats(zero), top,
                                Gelu()},
             steps_of_rows(l->fc1_in));
  else
    multiply(b.fc1, branch, m.codes, num_rows, m.row_sums,
             GeluToCodes{hidden_rows, Gelu(b.fc2_in_inverse[branch], zero), top});
  if (trace) copy_rows(trace->fc2_in, chunk.first_row, m.hidden, num_rows, hidden);
  multiply(b.fc2, branch, m.hidden, num_rows, m.row_sums, AddToStream{{stream, width}, rows},
           l ? steps_of_rows(l->fc2_in) : nullptr);
}

}  // namespace mixaq

MIXAQ_SIZE_OF(Block)
MIXAQ_SIZE_OF(Linear)
MIXAQ_SIZE_OF(Attention)
MIXAQ_SIZE_OF(Steps)
MIXAQ_SIZE_OF(Learned)
MIXAQ_SIZE_OF(Trace)
MIXAQ_SIZE_OF(Segment)

// Whether products run on matrix tiles from now on: if they are wanted, and this CPU and system have them.
extern "C" int mixaq_matrix_tiles(int wanted) {
  mixaq::matrix_tiles_wanted = wanted;
  return mixaq::matrix_tiles();
}

// What products run on, where not on tiles: an index of INSTRUCTIONS in ../build.py.
extern "C" int mixaq_instructions() {
#if defined(__AVX512VNNI__)
  return 2;
#elif defined(__AVXVNNI__)
  return 1;
#else
  return 0;
#endif
}

// In place: every window reads and writes its own rows of `stream` (stream_rows, channels) only. `trace` may be null.
// Returns null, or what does not fit.
extern "C" const char* mixaq_block(const mixaq::Block* block, float* stream, int64_t stream_rows, const int64_t* rows,
                                   const int64_t* slots, int64_t num_rows, int64_t count, int64_t high,
                                   const mixaq::Segment* segments, int64_t num_segments, int threads,
                                   const mixaq::Trace* trace) {
  using namespace mixaq;
  const Block& b = *block;
  Windows windows{rows, slots, num_rows, count, high, std::vector<int32_t>(std::max<int64_t>(count, 0))};
  for (int64_t i = 0; i < num_segments; ++i) {
    const Segment& s = segments[i];
    if (s.kind < 0 || s.kind >= b.kinds) return "a segment has a mask that the block lacks";
    if (s.start < 0 || s.stop > count) return "a segment lies outside of the windows";
    std::fill(windows.kinds.begin() + s.start, windows.kinds.begin() + std::max(s.start, s.stop), s.kind);
  }
  if (const char* reason = misfit(windows, stream_rows, b.tokens)) return reason;
  int64_t per_chunk = std::max<int64_t>(hidden_bytes(b.fc1) / (b.tokens * b.fc1.outputs), 1);
  per_chunk = std::max<int64_t>(std::min(per_chunk, (count + threads - 1) / threads), 1);
  const std::vector<Chunk> chunks = cut(windows, b.tokens, per_chunk, threads);
  int64_t most = 0;  // windows of a chunk
  for (const Chunk& chunk : chunks) most = std::max(most, chunk.last - chunk.first);
  const size_t slots_ = most * b.tokens;
  run_tasks(chunks.size(), threads, [&](const std::function<int64_t()>& take) {
    Scratch scratch(slots_ * (4 * b.channels + b.fc1.outputs + 20) + kHeadBytes + 10 * 64);
    Buffers m;
    m.codes = scratch.take<uint8_t>(slots_ * b.channels);
    m.qkv = scratch.take<uint8_t>(slots_ * 3 * b.channels);
    m.hidden = scratch.take<uint8_t>(slots_ * b.fc1.outputs);
    m.places = scratch.take<int64_t>(slots_);
    m.row_sums = scratch.take<int32_t>(slots_);
    m.positions = scratch.take<int32_t>(slots_);
    m.row_scale = scratch.take<float>(slots_);
    m.head = scratch.take<uint8_t>(kHeadBytes);
    std::memset(m.head, 0, kHeadBytes);  // what lies behind the last token must be finite
    for (int64_t i = take(); i >= 0; i = take()) run_chunk(b, windows, chunks[i], stream, m, trace);
  });
  return nullptr;
}
