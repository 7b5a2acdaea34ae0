// A Geometry as a kernel takes it: by value, walked by threads that each own `width` neighbours of the innermost run.
#pragma once

#include "native/device.h"
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

// Offsets of the operands, in elements, at element `index` in the order of the geometry.
template <int kOperands>
SNN_DEVICE void locate(const DeviceGeometry<kOperands>& geometry, int64_t index, int64_t (&at)[kOperands]) {
  SNN_UNROLL
  for (int k = 0; k < kOperands; ++k) at[k] = 0;
  SNN_NO_UNROLL
  for (int d = geometry.dims - 1; d > 0; --d) {
    const int64_t size = geometry.size[d];
    // A 64-bit division takes several times as long as one of 32 bits.
    const bool narrow = ((index | size) >> 32) == 0;
    const int64_t quotient =
        narrow ? static_cast<int64_t>(static_cast<uint32_t>(index) / static_cast<uint32_t>(size)) : index / size;
    const int64_t i = index - quotient * size;
    SNN_UNROLL
    for (int k = 0; k < kOperands; ++k) at[k] += i * geometry.stride[k][d];
    index = quotient;
  }
  SNN_UNROLL
  for (int k = 0; k < kOperands; ++k) at[k] += index * geometry.stride[k][0];
}

}  // namespace snn_core
