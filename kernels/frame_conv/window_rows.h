// Inner loop of frame_conv.cpp for windows of at most 64 inputs, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "lif/lif.h"

#define SNN_WINDOW_INLINE inline __attribute__((always_inline))

namespace snn_core {

constexpr int64_t kWindowInputs = 64;   // C * kh * kw: one bit each
constexpr int64_t kWindowOutputs = 16;  // whose multiples are taken
constexpr int64_t kWindowGroup = 8;     // output columns whose windows are cut from one word

// Output rows first_row <= oy < last_row of one sample, some time steps at once. Strides are in elements; the rows of
// the weight follow the order of the bits: channel, then row, then column of the window.
struct WindowTask {
  const void* x;  // of the sample, at the first of these steps
  bool counts;    // uint8, else float32
  const float* table;  // what a count stands for
  int64_t t_stride, c_stride, y_stride, x_stride;
  int64_t channels, height, width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h;
  int64_t first_row, last_row, columns, outputs, steps;
  const float* weight;    // [channels * kernel_h * kernel_w, outputs]
  const int64_t* offset;  // of each input of a window from its upper left corner
  const float* bias;      // [outputs]
  uint8_t* bits;          // of the first row at the first step: [rows, columns, outputs / 8]
  int64_t bits_stride;    // between steps
  float* v;               // [rows, columns, outputs]: before the first step, then after the last
  uint8_t* inputs;        // scratch: [steps, channels, input_rows()] of input_bytes() each
  uint64_t* masks;        // scratch: [steps, mask_columns()]

  SNN_WINDOW_INLINE int64_t input_rows() const {
    return (last_row - first_row - 1) * stride_h + (kernel_h - 1) * dilation_h + 1;
  }
  SNN_WINDOW_INLINE int64_t mask_columns() const { return (columns + kWindowGroup - 1) / kWindowGroup * kWindowGroup; }
  // Those of the padded row, those that the last group reads, and a word more.
  SNN_WINDOW_INLINE int64_t input_bytes() const {
    const int64_t row = (width + 2 * pad_w) / 8 + 16, read = mask_columns() / 8 * stride_w + 16;
    return ((row > read ? row : read) + 7) / 8 * 8;
  }
};

// Whether the kernel takes windows of this shape; it depends on nothing else, so that results do not either.
SNN_WINDOW_INLINE bool takes_windows(int64_t channels, int64_t kernel_h, int64_t kernel_w, int64_t stride_w,
                                     int64_t dilation_w, int64_t outputs) {
  return channels <= kWindowInputs && kernel_h <= kWindowInputs && kernel_w <= kWindowInputs &&
         channels * kernel_h * kernel_w <= kWindowInputs && dilation_w == 1 && outputs % kWindowOutputs == 0 &&
         stride_w <= 8 && (kWindowGroup - 1) * stride_w + kernel_w <= 64;
}

using WindowKernel = void (*)(const WindowTask&, const LifParameters&, const LifVariant&);

extern const WindowKernel window_rows_baseline;
#if defined(SNN_HAS_AVX2)
extern const WindowKernel window_rows_avx2;
#endif
#if defined(SNN_HAS_AVX512)
extern const WindowKernel window_rows_avx512;
#endif

#undef SNN_WINDOW_INLINE

}  // namespace snn_core
