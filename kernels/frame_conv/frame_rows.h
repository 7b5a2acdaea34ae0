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

// Where the inputs of a row or a column go: along one axis, an output (as an offset into the currents) and the place in
// the window (as an offset into the weight).
struct FrameTap {
  int64_t w, y;
};

// For every input of every row, every tap of its row and every tap of its column, both offsets added up:
// currents[y .. y + n) += x * weight[w .. w + n). The inputs of row r are those from first_input[r] on, its taps those
// from first_row_tap[r] on; the taps of a column those from first_column_tap[column] on.
struct FrameRows {
  const FrameInput* inputs;
  const int64_t* first_input;
  const FrameTap* row_taps;
  const int64_t* first_row_tap;
  int64_t rows;
  const FrameTap* column_taps;
  const int64_t* first_column_tap;
  const float* weight;
  float* currents;
  int64_t n;
};

using FrameKernel = void (*)(const FrameRows&);

extern const FrameKernel frame_rows_baseline;
#if defined(SNN_HAS_AVX2)
extern const FrameKernel frame_rows_avx2;
#endif
#if defined(SNN_HAS_AVX512)
extern const FrameKernel frame_rows_avx512;
#endif

}  // namespace snn_core
