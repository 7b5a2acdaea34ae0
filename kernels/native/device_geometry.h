// A Geometry as a kernel takes it: by value, walked by threads that each own `width` neighbours of the innermost run.
#pragma once

#include <cstdint>

#include "native/strided.h"

namespace snn_core {

template <int kOperands>
struct DeviceGeometry {
  int dims;
  int64_t groups;  // of `width` elements, `width` as the kernel has it
  int64_t size[kMaxDims];
  int64_t stride[kOperands][kMaxDims];
};

template <int kOperands>
DeviceGeometry<kOperands> to_device(const Geometry<kOperands>& geometry, int width) {
  DeviceGeometry<kOperands> device{};
  device.dims = geometry.dims;
  device.groups = geometry.outer_count() * geometry.inner_size() / width;
  for (int d = 0; d < geometry.dims; ++d) {
    device.size[d] = geometry.size[d];
    for (int k = 0; k < kOperands; ++k) device.stride[k][d] = geometry.stride[k][d];
  }
  return device;
}

// Whether `width` neighbours of operand k lie side by side and start at a multiple of `width` elements everywhere,
// relative to its data pointer. `broadcast` allows one element for all of them as well.
template <int kOperands>
bool runs_of(const Geometry<kOperands>& geometry, int k, int width, int64_t time_stride, bool broadcast = false) {
  if (geometry.inner_size() % width != 0) return false;
  if (broadcast && geometry.inner_stride(k) == 0) return true;
  if (geometry.inner_stride(k) != 1 || time_stride % width != 0) return false;
  for (int d = 0; d + 1 < geometry.dims; ++d) {
    if (geometry.stride[k][d] % width != 0) return false;
  }
  return true;
}

inline bool aligned16(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace snn_core
