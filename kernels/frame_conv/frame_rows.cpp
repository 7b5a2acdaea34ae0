// Rows of the weight times input values, added to the currents of the pixels that see them. Multiplication and addition
// are separate, so that every instruction set gives the same bits.

#include "frame_conv/frame_rows.h"

#include "native/vectors.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

template <int kVectors>
SNN_VECTOR_INLINE void add(float* y, const float* w, VectorF x) {
#pragma GCC unroll 8
  for (int k = 0; k < kVectors; ++k) {
    store<false>(y + k * kLanes, load<VectorF>(y + k * kLanes) + x * load<VectorF>(w + k * kLanes));
  }
}

// kWhole: n is 32 * kWhole; 0: any n.
template <int kWhole>
SNN_VECTOR_INLINE void add_row(float* y, const float* w, float value, int64_t n) {
  const VectorF x = VectorF{} + value;
  if constexpr (kWhole > 0) {
    add<kWhole * (32 / kLanes)>(y, w, x);
  } else {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) add<1>(y + i, w + i, x);
    for (; i < n; ++i) y[i] += value * w[i];
  }
}

template <int kWhole>
void all_inputs(const FrameRows& r) {
  for (int64_t row = 0; row < r.rows; ++row) {
    const FrameTap* const first_tap = r.row_taps + r.first_row_tap[row];
    const FrameTap* const last_tap = r.row_taps + r.first_row_tap[row + 1];
    const FrameInput* const last = r.inputs + r.first_input[row + 1];
    for (const FrameInput* input = r.inputs + r.first_input[row]; input < last; ++input) {
      const FrameTap* const columns = r.column_taps + r.first_column_tap[input->column];
      const FrameTap* const columns_end = r.column_taps + r.first_column_tap[input->column + 1];
      for (const FrameTap* tap = first_tap; tap < last_tap; ++tap) {
        const float* const w = r.weight + input->weight + tap->w;
        float* const y = r.currents + tap->y;
        for (const FrameTap* column = columns; column < columns_end; ++column) {
          add_row<kWhole>(y + column->y, w + column->w, input->x, r.n);
        }
      }
    }
  }
}

void rows(const FrameRows& r) {
  if (r.n == 32) return all_inputs<1>(r);
  if (r.n == 64) return all_inputs<2>(r);
  all_inputs<0>(r);
}

}  // namespace

extern const FrameKernel SNN_CONCAT(frame_rows_, SNN_ISA) = rows;

}  // namespace snn_core
