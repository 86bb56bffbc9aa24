// Non-maximum suppression within classes: what mmcv's batched_nms keeps, best first, and no more than are wanted.
//
// Candidates come in the order of their scores and are compared with the boxes of their class that have been kept. So
// the work ends with the last box that is wanted, and boxes of other classes are never looked at.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <unordered_map>
#include <vector>

#include "../sizes.h"
#include "lanes.h"

namespace mixaq {

// Candidate (row, column): its score, and its box of x1, y1, x2, y2.
struct Nms {
  const float *boxes, *scores;
  const int64_t* labels;  // of each row; null where the column is the label
  int64_t rows, columns, box_row, box_column, score_row;
  float least;            // candidates have scores above it
  float nms_least;        // of those, only scores above this one are looked at
  float threshold;        // overlap above which the lower score goes
  int64_t split;          // from so many candidates on, classes are apart whatever their coordinates
  int64_t limit;          // boxes wanted
  int32_t one_class;      // labels do not move boxes apart

  const float* box(int64_t index) const {
    return boxes + index / columns * box_row + index % columns * box_column;
  }
  float score(int64_t index) const { return scores[index / columns * score_row + index % columns]; }
  int64_t label(int64_t index) const { return labels ? labels[index / columns] : index % columns; }
};

namespace {

// Kept boxes of a class, coordinate by coordinate; behind the last one there are boxes that overlap with nothing.
class Kept {
 public:
  void add(const float (&box)[4], float area) {
    if (count_ % kLanes == 0) {
      for (auto& side : sides_) side.resize(count_ + kLanes, 0.f);
      areas_.resize(count_ + kLanes, 1.f);
      std::fill(sides_[0].begin() + count_, sides_[0].end(), std::numeric_limits<float>::infinity());
    }
    for (int side = 0; side < 4; ++side) sides_[side][count_] = box[side];
    areas_[count_++] = area;
  }

  bool suppress(const float (&box)[4], float area, float threshold) const {
    for (int64_t i = 0; i < count_; i += kLanes) {
      int hits = 0;
      for (int lane = 0; lane < kLanes; ++lane) {
        const float x1 = std::max(sides_[0][i + lane], box[0]), y1 = std::max(sides_[1][i + lane], box[1]);
        const float x2 = std::min(sides_[2][i + lane], box[2]), y2 = std::min(sides_[3][i + lane], box[3]);
        const float width = std::max(0.f, x2 - x1), height = std::max(0.f, y2 - y1);
        const float both = width * height;
        hits |= both / (areas_[i + lane] + area - both) > threshold;
      }
      if (hits) return true;
    }
    return false;
  }

 private:
  std::vector<float> sides_[4], areas_;
  int64_t count_ = 0;
};

struct Candidate {
  float score;
  int64_t index;
  bool operator<(const Candidate& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};

struct Range {
  float low = std::numeric_limits<float>::infinity(), high = -std::numeric_limits<float>::infinity();
  int64_t labels = 0;  // the largest, without its sign
  bool finite = true;
};

// Candidates in any order, and what their coordinates reach.
std::vector<Candidate> candidates(const Nms& call, Range& range) {
  std::vector<Candidate> found;
  for (int64_t index = 0; index < call.rows * call.columns; ++index) {
    const float score = call.score(index);
    range.finite &= std::isfinite(score);
    if (!(score > call.least)) continue;
    const float* box = call.box(index);
    for (int side = 0; side < 4; ++side) {
      range.finite &= std::isfinite(box[side]);
      range.low = std::min(range.low, box[side]);
      range.high = std::max(range.high, box[side]);
    }
    range.labels = std::max(range.labels, std::abs(call.label(index)));
    found.push_back({score, index});
  }
  return found;
}

// Sorts the best that have not been sorted yet: most calls end within the first few.
class BestFirst {
 public:
  explicit BestFirst(std::vector<Candidate>& all) : all_(all) {}
  const Candidate* next() {
    if (at_ == static_cast<int64_t>(all_.size())) return nullptr;
    if (at_ == sorted_) {
      sorted_ = std::min<int64_t>(all_.size(), sorted_ + step_);
      step_ *= 4;
      std::nth_element(all_.begin() + at_, all_.begin() + sorted_ - 1, all_.end());
      std::sort(all_.begin() + at_, all_.begin() + sorted_);
    }
    return &all_[at_++];
  }

 private:
  std::vector<Candidate>& all_;
  int64_t at_ = 0, sorted_ = 0, step_ = 2048;
};

}  // namespace
}  // namespace mixaq

MIXAQ_SIZE_OF(Nms)

// Indices (row * columns + column) of kept candidates, best first; returns how many, or -1 where a number is not finite.
extern "C" int64_t mixaq_nms(const mixaq::Nms* nms, int64_t* kept) {
  using namespace mixaq;
  const Nms& call = *nms;
  Range range;
  std::vector<Candidate> found = candidates(call, range);
  if (!range.finite) return -1;
  const float step = range.high + 1.f;
  // below this, a gap of 1 between classes is wider than what rounding moves
  constexpr float kExact = 1 << 21;
  const bool moved = !call.one_class;
  const bool apart = moved && range.low >= 0 && call.threshold >= 0 && step * (range.labels + 1.f) < kExact;
  const bool grouped = apart || static_cast<int64_t>(found.size()) >= call.split;
  std::unordered_map<int64_t, Kept> classes;
  BestFirst order(found);
  int64_t count = 0;
  while (count < call.limit) {
    const Candidate* candidate = order.next();
    if (!candidate) break;
    if (call.nms_least > 0 && !(candidate->score > call.nms_least)) break;
    const int64_t label = call.label(candidate->index);
    const float offset = moved ? static_cast<float>(label) * step : 0.f;
    const float* from = call.box(candidate->index);
    const float box[4] = {from[0] + offset, from[1] + offset, from[2] + offset, from[3] + offset};
    const float area = (box[2] - box[0]) * (box[3] - box[1]);
    Kept& others = classes[grouped ? label : 0];
    if (others.suppress(box, area, call.threshold)) continue;
    others.add(box, area);
    kept[count++] = candidate->index;
  }
  return count;
}
