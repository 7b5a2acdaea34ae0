// Inner loop of frame_conv.cpp, compiled once per instruction set.
#pragma once

#include <cstdint>

namespace snn_core {

// An input value that is not zero: its column, and where the rows of its channel begin in the weight.
struct FrameInput {
  float x;
  int32_t column;
  int64_t weight;
};

// Where the inputs of a column go: to the output at `y`, times the weight row at `w`.
struct FrameTap {
  int64_t w, y;
};

// For every input and every tap of its column (those from first_tap[column] to first_tap[column + 1]):
// currents[y .. y + n) += x * weight[w .. w + n).
struct FrameRow {
  const FrameInput* inputs;
  int64_t count;
  const int64_t* first_tap;
  const FrameTap* taps;
  const float* weight;
  float* currents;
  int64_t n;
};

using FrameKernel = void (*)(const FrameRow&);

extern const FrameKernel frame_rows_baseline;
#if defined(SNN_HAS_AVX2)
extern const FrameKernel frame_rows_avx2;
#endif
#if defined(SNN_HAS_AVX512)
extern const FrameKernel frame_rows_avx512;
#endif

}  // namespace snn_core
