// What spike_windows.cu and spike_windows_kernels.cu (compiled without torch's headers) share.
#pragma once

#include <cstdint>

namespace snn_core {

constexpr int kSpikeWindowsThreads = 256;

// Windows of a channels-last image of packed spikes. Widths and strides count units: bytes or words of 4 or 16.
struct SpikeWindowsArguments {
  const void* bits;  // [batch, height, width, units]
  void* out;         // im2col: [windows, kernel_height * kernel_width, units]; pool: [windows, units]
  int64_t batch_stride, row_stride, column_stride;
  int64_t batch;
  int units, height, width, kernel_height, kernel_width, stride_y, stride_x, pad_y, pad_x, step_y, step_x;
  int out_height, out_width;
  uint32_t last_mask;  // of the last byte of a pixel: spikes that there are. 255 but with units of a byte
};

using SpikeWindowsKernel = void (*)(SpikeWindowsArguments);

// `bytes`: of a unit, 1, 4 or 16.
SpikeWindowsKernel cuda_spike_im2col(int bytes);
SpikeWindowsKernel cuda_spike_max_pool(int bytes);

}  // namespace snn_core
