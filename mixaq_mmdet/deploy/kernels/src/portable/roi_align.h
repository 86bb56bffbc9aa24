// What a call of RoIAlign is told, and the RoIs of one map.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "../parallel.h"
#include "lanes.h"
#include "roi_axis.h"

namespace mixaq {

// A map of one level: (batch, channels, height, width) in memory, or (batch, height, width, channels).
struct RoiLevel {
  void* map;
  int64_t height, width;
  float scale;  // cells per pixel
};

struct RoiAlign {
  const RoiLevel* levels;
  int64_t num_levels, batch, channels;
  const float* rois;        // (count, 5): image, x1, y1, x2, y2 in pixels
  const int64_t* level_of;  // (count,)
  int64_t count, rows, columns, sampling;
  int32_t aligned, maps_channels_last, pooled_channels_last;
  // maps of codes stand for (code - in_zero) * in_step; pooled codes for (code - out_zero) / out_inverse
  float in_step, in_zero, out_inverse, out_zero, out_top;

  int64_t bins() const { return rows * columns; }
};

constexpr int64_t kChunk = 64;          // channels that are worked on at once
constexpr float kMostCells = 1 << 20;  // of a RoI's side

struct RoiWindow {
  RoiAxis ys, xs;

  void place(const RoiAlign& call, int64_t roi) {
    const RoiLevel& level = call.levels[call.level_of[roi]];
    const float* box = call.rois + 5 * roi;
    const float offset = call.aligned ? .5f : 0.f;
    const float x1 = box[1] * level.scale - offset, y1 = box[2] * level.scale - offset;
    float width = box[3] * level.scale - offset - x1, height = box[4] * level.scale - offset - y1;
    if (!call.aligned) width = std::max(width, 1.f), height = std::max(height, 1.f);
    ys.place(y1, height, call.rows, call.sampling, level.height);
    xs.place(x1, width, call.columns, call.sampling, level.width);
  }
};

// Why a call cannot be done, or null.
inline const char* refusal(const RoiAlign& call) {
  for (int64_t i = 0; i < call.num_levels; ++i)
    if (call.levels[i].height < 1 || call.levels[i].width < 1) return "a map has no cells";
  for (int64_t n = 0; n < call.count; ++n) {
    const float* box = call.rois + 5 * n;
    if (!(box[0] >= 0 && box[0] < static_cast<float>(call.batch))) return "a RoI is of an image that is not there";
    if (call.level_of[n] < 0 || call.level_of[n] >= call.num_levels) return "a RoI is of a level that is not there";
    const float scale = call.levels[call.level_of[n]].scale;
    const float width = (box[3] - box[1]) * scale, height = (box[4] - box[2]) * scale;
    // comparisons with NaN are false
    if (!(std::abs(box[1]) < HUGE_VALF && std::abs(box[2]) < HUGE_VALF && width < kMostCells && height < kMostCells))
      return "a RoI is not finite, or too large";
    if (call.aligned && !(width >= 0 && height >= 0)) return "a RoI has a negative size";
  }
  return nullptr;
}

// RoIs of each map: index image * num_levels + level; from top to bottom, so that neighbours share what is in the cache.
inline std::vector<std::vector<int64_t>> rois_by_map(const RoiAlign& call) {
  std::vector<std::vector<int64_t>> groups(call.batch * call.num_levels);
  for (int64_t n = 0; n < call.count; ++n)
    groups[static_cast<int64_t>(call.rois[5 * n]) * call.num_levels + call.level_of[n]].push_back(n);
  for (auto& group : groups)
    std::stable_sort(group.begin(), group.end(),
                     [&](int64_t a, int64_t b) { return call.rois[5 * a + 2] < call.rois[5 * b + 2]; });
  return groups;
}

// Numbers of maps, those with most work first.
inline std::vector<int64_t> busiest_first(const std::vector<std::vector<int64_t>>& groups) {
  std::vector<int64_t> order(groups.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return groups[a].size() > groups[b].size(); });
  return order;
}

}  // namespace mixaq
