// Device text of spike_im2col and spike_max_pool: a thread owns one unit (1, 4 or 16 bytes) of the result.
#pragma once

#include "native/device.h"
#include "spike_pack/spike_windows_cuda.h"

namespace snn_core {

template <int kWords>
struct alignas(kWords * 4) SpikeUnit {
  uint32_t word[kWords];

  SNN_DEVICE void clear() {
    SNN_UNROLL
    for (int i = 0; i < kWords; ++i) word[i] = 0;
  }
  SNN_DEVICE void add(const SpikeUnit& other) {
    SNN_UNROLL
    for (int i = 0; i < kWords; ++i) word[i] |= other.word[i];
  }
  SNN_DEVICE void keep(uint32_t) {}
};
template <>
struct SpikeUnit<0> {  // a byte
  uint8_t byte;

  SNN_DEVICE void clear() { byte = 0; }
  SNN_DEVICE void add(const SpikeUnit& other) { byte |= other.byte; }
  SNN_DEVICE void keep(uint32_t mask) { byte &= static_cast<uint8_t>(mask); }
};

struct WindowPlace {
  int64_t image;
  int y, x;  // of its corner; negative in the padding

  SNN_DEVICE WindowPlace(const SpikeWindowsArguments& a, int64_t window) {
    const int64_t line = window / a.out_width;
    x = static_cast<int>(window - line * a.out_width) * a.stride_x - a.pad_x;
    image = line / a.out_height;
    y = static_cast<int>(line - image * a.out_height) * a.stride_y - a.pad_y;
  }
};

// The unit at a pixel, and whether the pixel is in the image.
template <class Unit>
SNN_DEVICE bool read_pixel(const SpikeWindowsArguments& a, const WindowPlace& place, int ky, int kx, int unit,
                           Unit& result) {
  const int y = place.y + ky * a.step_y, x = place.x + kx * a.step_x;
  if (y < 0 || y >= a.height || x < 0 || x >= a.width) return false;
  result = static_cast<const Unit*>(
      a.bits)[place.image * a.batch_stride + y * a.row_stride + x * a.column_stride + unit];
  return true;
}

template <int kWords>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kSpikeWindowsThreads, 4)
    spike_im2col_kernel(SNN_GRID_CONSTANT SpikeWindowsArguments a) {
  using Unit = SpikeUnit<kWords>;
  const int positions = a.kernel_height * a.kernel_width;
  const int64_t total = a.batch * a.out_height * a.out_width * positions * a.units;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    const int64_t pixel = i / a.units;
    const int unit = static_cast<int>(i - pixel * a.units);
    const int64_t window = pixel / positions;
    const int position = static_cast<int>(pixel - window * positions);
    Unit value;
    value.clear();
    read_pixel(a, WindowPlace(a, window), position / a.kernel_width, position % a.kernel_width, unit, value);
    if (unit == a.units - 1) value.keep(a.last_mask);
    static_cast<Unit*>(a.out)[i] = value;
  }
}

template <int kWords>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kSpikeWindowsThreads, 4)
    spike_max_pool_kernel(SNN_GRID_CONSTANT SpikeWindowsArguments a) {
  using Unit = SpikeUnit<kWords>;
  const int64_t total = a.batch * a.out_height * a.out_width * a.units;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    const int64_t window = i / a.units;
    const int unit = static_cast<int>(i - window * a.units);
    const WindowPlace place(a, window);
    Unit any;
    any.clear();
    for (int ky = 0; ky < a.kernel_height; ++ky) {
      for (int kx = 0; kx < a.kernel_width; ++kx) {
        Unit value;
        if (read_pixel(a, place, ky, kx, unit, value)) any.add(value);
      }
    }
    static_cast<Unit*>(a.out)[i] = any;
  }
}

}  // namespace snn_core
