// How the CPU cuts a LIF call into blocks of neurons, and what a block knows of its operands.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "lif/lif_rows.h"
#include "native/cpu_features.h"
#include "native/row_view.h"

namespace snn_core {

inline const LifForwardTable& forward_table() { SNN_PICK(lif_forward) }
inline const LifBackwardTable& backward_table() { SNN_PICK(lif_backward) }

constexpr int64_t kParallelGrain = 65536;  // element steps below which a thread is not worth waking
constexpr int64_t kStreamBytes = 8 << 20;  // outputs from this size on bypass the caches

// A pure function of the shape, so that sums are the same for any number of threads.
struct Blocking {
  int64_t width, blocks_per_run, count;

  template <int K>
  Blocking(const Geometry<K>& geometry, int64_t widest) {
    const int64_t inner = geometry.inner_size();
    // At least 16 blocks for the threads to share where there is enough work, in whole cache lines.
    const int64_t share = (inner * geometry.outer_count() / 16 + 63) / 64 * 64;
    width = std::max<int64_t>(1, std::min({inner, widest, std::max<int64_t>(share, 512)}));
    blocks_per_run = (inner + width - 1) / width;
    count = geometry.outer_count() * blocks_per_run;
  }

  int64_t grain(int64_t steps) const {
    return std::max<int64_t>(1, kParallelGrain / std::max<int64_t>(1, width * steps));
  }
};

// The operands of one block; n neighbouring neurons.
template <int K>
struct Block {
  std::array<RowView, K> view;
  int64_t n;

  Block(const Geometry<K>& geometry, const Blocking& blocking, const std::array<Operand, K>& operands, int64_t index) {
    const auto outer = geometry.outer_offset(index / blocking.blocks_per_run);
    const int64_t start = index % blocking.blocks_per_run * blocking.width;
    n = std::min(blocking.width, geometry.inner_size() - start);
    for (int k = 0; k < K; ++k) {
      const int64_t stride = geometry.inner_stride(k);
      view[k] = {operands[k], outer[k] + start * stride, stride};
    }
  }
};

inline void load_state(const RowView& view, float absent, float* v, int64_t n) {
  if (!view.operand) {
    row_tools().fill(absent, v, n);
  } else {
    const float* source = view.read(0, v, n);
    if (source != v) std::copy_n(source, n, v);
  }
}

// A state of float32 at time index t of its operand; `stream` past the caches, where its rows allow.
inline void store_state(const RowView& view, int64_t t, const float* v, int64_t n, bool stream = false) {
  if (stream && view.direct() && view.aligned()) {
    row_tools().stream(v, reinterpret_cast<float*>(view.at(t)), n);
    return;
  }
  float* target = view.target(t, const_cast<float*>(v));
  if (target != v) std::copy_n(v, n, target);
  view.write(t, v, n);
}

inline bool large(const Tensor& t) { return t.numel() * static_cast<int64_t>(t.element_size()) >= kStreamBytes; }

}  // namespace snn_core
