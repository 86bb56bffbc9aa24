// RoIAlign over the levels of a pyramid: bilinear samples averaged in the bins of each RoI, as mmcv's with pool_mode avg.
#include "../sizes.h"
#include "roi_align.h"

namespace mixaq {
namespace {

// values[c] = sum of `count` cells, `stride` apart, each times its weight.
template <typename In>
inline void weighted_sum(const In* cells, int64_t stride, const float* weights, int64_t count, int64_t channels,
                         float* values) {
  if (channels == kChunk) {
    Lanes sums[kChunk / kLanes] = {};
    for (int64_t k = 0; k < count; ++k)
      for (int64_t j = 0; j < kChunk / kLanes; ++j) sums[j] += weights[k] * load(cells + k * stride + j * kLanes);
    for (int64_t j = 0; j < kChunk / kLanes; ++j) store(values + j * kLanes, sums[j]);
    return;
  }
  for (int64_t c = 0; c < channels; ++c) values[c] = 0;
  for (int64_t k = 0; k < count; ++k)
    for (int64_t c = 0; c < channels; ++c) values[c] += weights[k] * static_cast<float>(cells[k * stride + c]);
}

// A tile (rows, columns, kChunk) of `channels` channels; cells are `cell` elements apart, rows of the map `row`.
template <typename In>
void pool(const RoiWindow& window, const In* map, int64_t cell, int64_t row, int64_t channels, float* line,
          float* tile) {
  const RoiAxis &ys = window.ys, &xs = window.xs;
  const int64_t width = xs.bins() * kChunk;
  std::fill(tile, tile + ys.bins() * width, 0.f);
  for (int64_t y = ys.low(); y < ys.high(); ++y) {
    for (int64_t bin = 0; bin < xs.bins(); ++bin)
      weighted_sum(map + y * row + xs.first(bin) * cell, cell, xs.weights(bin), xs.count(bin), channels,
                   line + bin * kChunk);
    for (int64_t bin = 0; bin < ys.bins(); ++bin) {
      const float weight = ys.weight(bin, y);
      if (weight == 0.f) continue;
      float* target = tile + bin * width;
      for (int64_t i = 0; i < width; ++i) target[i] += weight * line[i];
    }
  }
}

// Subtracts the zero point of the cells that a bin has seen: those outside of the map count as 0, not as code 0.
void to_values(const RoiAlign& call, const RoiWindow& window, float* tile) {
  const auto total = [](const RoiAxis& axis, int64_t bin) {
    float sum = 0;
    for (int64_t k = 0; k < axis.count(bin); ++k) sum += axis.weights(bin)[k];
    return sum;
  };
  for (int64_t y = 0; y < call.rows; ++y)
    for (int64_t x = 0; x < call.columns; ++x) {
      const float zero = call.in_zero * total(window.ys, y) * total(window.xs, x);
      float* values = tile + (y * call.columns + x) * kChunk;
      for (int64_t c = 0; c < kChunk; ++c) values[c] = (values[c] - zero) * call.in_step;
    }
}

inline void deliver(const RoiAlign&, float value, float& out) { out = value; }
inline void deliver(const RoiAlign& call, float value, uint8_t& out) {
  const float code = std::nearbyint(value * call.out_inverse) + call.out_zero;
  out = static_cast<uint8_t>(std::min(std::max(code, 0.f), call.out_top));
}

template <typename Out>
void write(const RoiAlign& call, const float* tile, int64_t roi, int64_t first, int64_t channels, Out* out) {
  const int64_t bins = call.bins();
  Out* target = out + roi * bins * call.channels;
  if (call.pooled_channels_last) {
    for (int64_t bin = 0; bin < bins; ++bin)
      for (int64_t c = 0; c < channels; ++c)
        deliver(call, tile[bin * kChunk + c], target[bin * call.channels + first + c]);
    return;
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t bin = 0; bin < bins; ++bin)
      deliver(call, tile[bin * kChunk + c], target[(first + c) * bins + bin]);
}

// Work memory of a thread.
struct Workplace {
  Workplace(const RoiAlign& call, int64_t map_bytes)
      : scratch(map_bytes + (call.columns + call.bins()) * kChunk * sizeof(float) + 192),
        line(scratch.take<float>(call.columns * kChunk)),
        tile(scratch.take<float>(call.bins() * kChunk)) {
    std::fill(line, line + call.columns * kChunk, 0.f);
  }
  Scratch scratch;
  float *line, *tile;
  RoiWindow window;
};

template <typename In, typename Out>
void pool_roi(const RoiAlign& call, Workplace& work, const In* map, int64_t cell, int64_t width, int64_t roi,
              int64_t first, Out* out) {
  const int64_t channels = std::min(kChunk, call.channels - first);
  pool(work.window, map, cell, width * cell, channels, work.line, work.tile);
  if constexpr (sizeof(In) == 1) to_values(call, work.window, work.tile);
  write(call, work.tile, roi, first, channels, out);
}

constexpr int64_t kNeighbours = 8;  // RoIs of a task

// Maps (batch, height, width, channels): RoIs are read where they lie.
template <typename In, typename Out>
void pool_channels_last(const RoiAlign& call, Out* out, int threads) {
  const auto groups = rois_by_map(call);
  std::vector<int64_t> order;
  for (int64_t map : busiest_first(groups)) order.insert(order.end(), groups[map].begin(), groups[map].end());
  run_tasks((call.count + kNeighbours - 1) / kNeighbours, threads, [&](const std::function<int64_t()>& take) {
    Workplace work(call, 0);
    for (int64_t task = take(); task >= 0; task = take())
      for (int64_t i = task * kNeighbours; i < std::min(call.count, (task + 1) * kNeighbours); ++i) {
        const int64_t roi = order[i], image = static_cast<int64_t>(call.rois[5 * roi]);
        const RoiLevel& level = call.levels[call.level_of[roi]];
        const In* map = static_cast<const In*>(level.map) + image * level.height * level.width * call.channels;
        work.window.place(call, roi);
        for (int64_t first = 0; first < call.channels; first += kChunk)
          pool_roi(call, work, map + first, call.channels, level.width, roi, first, out);
      }
  });
}

constexpr int64_t kCells = 16;  // a cache line of a plane

// `channels` planes of `cells` values to (cells, kChunk), or back.
template <bool Back, typename T>
void turn(T* planes, int64_t cells, int64_t channels, T* turned) {
  for (int64_t i = 0; i < cells; i += kCells) {
    const int64_t end = std::min(cells, i + kCells);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t k = i; k < end; ++k)
        if constexpr (Back)
          planes[c * cells + k] = turned[k * kChunk + c];
        else
          turned[k * kChunk + c] = planes[c * cells + k];
  }
}

int64_t largest_map(const RoiAlign& call) {
  int64_t cells = 0;
  for (int64_t i = 0; i < call.num_levels; ++i)
    cells = std::max(cells, call.levels[i].height * call.levels[i].width);
  return cells;
}

// Maps (batch, channels, height, width): some channels of a map are turned first, then all its RoIs pool them.
template <typename In, typename Out>
void pool_channels_first(const RoiAlign& call, Out* out, int threads) {
  const auto groups = rois_by_map(call);
  const auto order = busiest_first(groups);
  const int64_t chunks = (call.channels + kChunk - 1) / kChunk;
  run_tasks(static_cast<int64_t>(groups.size()) * chunks, threads, [&](const std::function<int64_t()>& take) {
    Workplace work(call, largest_map(call) * kChunk * sizeof(In));
    In* turned = work.scratch.take<In>(largest_map(call) * kChunk);
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t map = order[task / chunks], first = task % chunks * kChunk;
      if (groups[map].empty()) continue;
      const RoiLevel& level = call.levels[map % call.num_levels];
      const int64_t cells = level.height * level.width, image = map / call.num_levels;
      turn<false>(static_cast<In*>(level.map) + (image * call.channels + first) * cells, cells,
                  std::min(kChunk, call.channels - first), turned);
      for (int64_t roi : groups[map]) {
        work.window.place(call, roi);
        pool_roi(call, work, turned, kChunk, level.width, roi, first, out);
      }
    }
  });
}

template <typename In, typename Out>
void pool_all(const RoiAlign& call, void* out, int threads) {
  if (call.maps_channels_last)
    pool_channels_last<In>(call, static_cast<Out*>(out), threads);
  else
    pool_channels_first<In>(call, static_cast<Out*>(out), threads);
}

// tile (rows, columns, kChunk) of a gradient of pooled values.
void read(const RoiAlign& call, const float* gradient, int64_t roi, int64_t first, int64_t channels, float* tile) {
  const int64_t bins = call.bins();
  const float* source = gradient + roi * bins * call.channels;
  for (int64_t bin = 0; bin < bins; ++bin)
    for (int64_t c = 0; c < channels; ++c)
      tile[bin * kChunk + c] =
          call.pooled_channels_last ? source[bin * call.channels + first + c] : source[(first + c) * bins + bin];
}

// Adds to (height, width, kChunk) what the RoI passes back: `pool` with both sums turned around.
void spread(const RoiWindow& window, const float* tile, int64_t width, float* line, float* map) {
  const RoiAxis &ys = window.ys, &xs = window.xs;
  const int64_t tile_row = xs.bins() * kChunk;
  for (int64_t y = ys.low(); y < ys.high(); ++y) {
    std::fill(line, line + tile_row, 0.f);
    for (int64_t bin = 0; bin < ys.bins(); ++bin) {
      const float weight = ys.weight(bin, y);
      if (weight == 0.f) continue;
      for (int64_t i = 0; i < tile_row; ++i) line[i] += weight * tile[bin * tile_row + i];
    }
    for (int64_t bin = 0; bin < xs.bins(); ++bin) {
      const float* weights = xs.weights(bin);
      Lanes values[kChunk / kLanes];
      for (int64_t j = 0; j < kChunk / kLanes; ++j) values[j] = load(line + bin * kChunk + j * kLanes);
      for (int64_t k = 0; k < xs.count(bin); ++k) {
        float* target = map + (y * width + xs.first(bin) + k) * kChunk;
        for (int64_t j = 0; j < kChunk / kLanes; ++j)
          store(target + j * kLanes, load(target + j * kLanes) + weights[k] * values[j]);
      }
    }
  }
}

}  // namespace
}  // namespace mixaq

MIXAQ_SIZE_OF(RoiLevel)
MIXAQ_SIZE_OF(RoiAlign)

// Pooled values (count, channels, rows, columns), or (count, rows, columns, channels); float32 or codes, as maps are.
extern "C" const char* mixaq_roi_align(const mixaq::RoiAlign* roi_align, void* out, int from_codes, int to_codes,
                                       int threads) {
  using namespace mixaq;
  const RoiAlign& call = *roi_align;
  if (const char* reason = refusal(call)) return reason;
  if (from_codes)
    (to_codes ? pool_all<uint8_t, uint8_t> : pool_all<uint8_t, float>)(call, out, threads);
  else
    (to_codes ? pool_all<float, uint8_t> : pool_all<float, float>)(call, out, threads);
  return nullptr;
}

// Writes to the maps, float32, what the gradient of pooled values is to them. RoIs add up in one order, whatever the
// number of threads.
extern "C" const char* mixaq_roi_align_backward(const mixaq::RoiAlign* roi_align, const float* gradient, int threads) {
  using namespace mixaq;
  const RoiAlign& call = *roi_align;
  if (const char* reason = refusal(call)) return reason;
  const auto groups = rois_by_map(call);
  const auto order = busiest_first(groups);
  const int64_t chunks = (call.channels + kChunk - 1) / kChunk;
  run_tasks(static_cast<int64_t>(groups.size()) * chunks, threads, [&](const std::function<int64_t()>& take) {
    Workplace work(call, largest_map(call) * kChunk * sizeof(float));
    float* turned = work.scratch.take<float>(largest_map(call) * kChunk);
    std::fill(work.tile, work.tile + call.bins() * kChunk, 0.f);
    for (int64_t task = take(); task >= 0; task = take()) {
      const int64_t map = order[task / chunks], first = task % chunks * kChunk;
      const int64_t channels = std::min(kChunk, call.channels - first);
      const RoiLevel& level = call.levels[map % call.num_levels];
      const int64_t cells = level.height * level.width, image = map / call.num_levels;
      std::fill(turned, turned + cells * kChunk, 0.f);
      for (int64_t roi : groups[map]) {
        work.window.place(call, roi);
        read(call, gradient, roi, first, channels, work.tile);
        spread(work.window, work.tile, level.width, work.line, turned);
      }
      float* out = static_cast<float*>(level.map) + image * cells * call.channels;
      if (!call.maps_channels_last) {
        turn<true>(out + first * cells, cells, channels, turned);
        continue;
      }
      for (int64_t i = 0; i < cells; ++i)
        std::memcpy(out + i * call.channels + first, turned + i * kChunk, channels * sizeof(float));
    }
  });
  return nullptr;
}
