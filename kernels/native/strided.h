// Walking several tensors of one shape and any strides together: dimensions are ordered by the first operand's strides
// and merged where every operand allows, so that the innermost run is as long as the layouts permit.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace snn_core {

constexpr int kMaxDims = 24;

// Sizes and per-operand strides (in elements) of up to kOperands tensors of the same shape.
template <int kOperands>
struct Geometry {
  int dims = 0;
  std::array<int64_t, kMaxDims> size{};
  std::array<std::array<int64_t, kMaxDims>, kOperands> stride{};

  void add_dimension(int64_t extent, const std::array<int64_t, kOperands>& strides) {
    if (extent == 1) return;
    size[dims] = extent;
    for (int k = 0; k < kOperands; ++k) stride[k][dims] = strides[k];
    ++dims;
  }

  void coalesce() {
    sort();
    merge();
  }

  // By descending stride of operand 0; later operands break ties.
  void sort() {
    for (int i = 1; i < dims; ++i) {
      for (int j = i; j > 0 && outer_than(j, j - 1); --j) swap_dimensions(j, j - 1);
    }
  }

  // Neighbouring dimensions into one where every operand allows.
  void merge() {
    int last = 0;
    for (int d = 1; d < dims; ++d) {
      bool mergeable = true;
      for (int k = 0; k < kOperands; ++k) mergeable = mergeable && stride[k][last] == stride[k][d] * size[d];
      if (mergeable) {
        size[last] *= size[d];
      } else {
        ++last;
        size[last] = size[d];
      }
      for (int k = 0; k < kOperands; ++k) stride[k][last] = stride[k][d];
    }
    if (dims > 0) dims = last + 1;
  }

  int64_t inner_size() const { return dims == 0 ? 1 : size[dims - 1]; }
  int64_t inner_stride(int operand) const { return dims == 0 ? 1 : stride[operand][dims - 1]; }

  int64_t outer_count() const {
    int64_t count = 1;
    for (int d = 0; d + 1 < dims; ++d) count *= size[d];
    return count;
  }

  // Element offset of each operand at the start of the given innermost run.
  std::array<int64_t, kOperands> outer_offset(int64_t index) const {
    std::array<int64_t, kOperands> offset{};
    for (int d = dims - 2; d >= 0; --d) {
      const int64_t i = index % size[d];
      index /= size[d];
      for (int k = 0; k < kOperands; ++k) offset[k] += i * stride[k][d];
    }
    return offset;
  }

 private:
  bool outer_than(int a, int b) const {
    for (int k = 0; k < kOperands; ++k) {
      if (stride[k][a] != stride[k][b]) return stride[k][a] > stride[k][b];
    }
    return false;
  }

  void swap_dimensions(int a, int b) {
    std::swap(size[a], size[b]);
    for (int k = 0; k < kOperands; ++k) std::swap(stride[k][a], stride[k][b]);
  }
};

}  // namespace snn_core
