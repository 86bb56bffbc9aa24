// The two axes of a RoI on a map. Average pooling of bilinear samples on a grid is separable: a bin's value is a sum over
// rows of a sum over columns, each cell with the summed weights of the samples beside it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace mixaq {

// What the bins of one axis read: cells `first[bin]` to `first[bin] + count[bin] - 1`, weighed by `weights(bin)`.
class RoiAxis {
 public:
  // Samples are placed as mmcv places them, in the same order of float operations.
  //   start, length: the RoI on this axis, in cells
  //   bins: how many
  //   sampling: samples of a bin; 0 for one each cell
  //   cells: of the map
  void place(float start, float length, int64_t bins, int64_t sampling, int64_t cells) {
    const float bin_length = length / static_cast<float>(bins);
    const int64_t samples = sampling > 0 ? sampling : static_cast<int64_t>(std::ceil(bin_length));
    first_.assign(bins, 0);
    count_.assign(bins, 0);
    offset_.resize(bins);
    weights_.clear();
    low_ = cells, high_ = 0;
    for (int64_t bin = 0; bin < bins; ++bin) {
      offset_[bin] = weights_.size();
      for (int64_t i = 0; i < samples; ++i) {
        const float from = start + static_cast<float>(bin) * bin_length;
        float at = from + (static_cast<float>(i) + .5f) * bin_length / static_cast<float>(samples);
        if (at < -1.f || at > static_cast<float>(cells)) continue;
        at = std::max(at, 0.f);
        const int64_t cell = std::min(static_cast<int64_t>(at), cells - 1);
        const float beyond = cell == cells - 1 ? 0.f : at - static_cast<float>(cell);
        add(bin, cell, 1.f - beyond);
        if (cell < cells - 1) add(bin, cell + 1, beyond);
      }
      for (int64_t k = 0; k < count_[bin]; ++k) weights_[offset_[bin] + k] /= static_cast<float>(samples);
      if (count_[bin]) {
        low_ = std::min(low_, first_[bin]);
        high_ = std::max(high_, first_[bin] + count_[bin]);
      }
    }
  }

  int64_t bins() const { return first_.size(); }
  int64_t first(int64_t bin) const { return first_[bin]; }
  int64_t count(int64_t bin) const { return count_[bin]; }
  const float* weights(int64_t bin) const { return weights_.data() + offset_[bin]; }
  // cells that any bin reads: low() to high() - 1
  int64_t low() const { return low_; }
  int64_t high() const { return high_; }
  // weight of `cell` in `bin`
  float weight(int64_t bin, int64_t cell) const {
    const int64_t k = cell - first_[bin];
    return k >= 0 && k < count_[bin] ? weights(bin)[k] : 0.f;
  }

 private:
  void add(int64_t bin, int64_t cell, float weight) {
    if (!count_[bin]) first_[bin] = cell;
    while (first_[bin] + count_[bin] <= cell) weights_.push_back(0.f), ++count_[bin];
    weights_[offset_[bin] + cell - first_[bin]] += weight;
  }
  std::vector<int64_t> first_, count_, offset_;
  std::vector<float> weights_;
  int64_t low_ = 0, high_ = 0;
};

}  // namespace mixaq
