// The words that the text of kernels is written in, for two compilers: nvcc, and g++ with SNN_EMULATED, where a launch
// is a loop over the grid (cuda_launch.h). Kernels here use no barriers, no shared memory and no warp instructions, so
// that both run the same text and the CPU tests exercise what a GPU runs.
#pragma once

#include <cstdint>

#include "native/device_geometry.h"

#if defined(SNN_EMULATED)

#define SNN_GLOBAL
#define SNN_DEVICE inline __attribute__((always_inline))
#define SNN_GRID_CONSTANT const
#define SNN_LAUNCH_BOUNDS(threads, blocks)
#define SNN_UNROLL
#define SNN_NO_UNROLL

namespace snn_core {

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
inline thread_local Index3 threadIdx, blockIdx, blockDim, gridDim;

}  // namespace snn_core

#else

#define SNN_GLOBAL __global__
#define SNN_DEVICE __device__ __forceinline__
#define SNN_GRID_CONSTANT const __grid_constant__
#define SNN_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define SNN_UNROLL _Pragma("unroll")
#define SNN_NO_UNROLL _Pragma("unroll 1")

#endif

namespace snn_core {

SNN_DEVICE int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
SNN_DEVICE int64_t global_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// Offsets of the operands, in elements, at element `index` in the order of the geometry.
template <int kOperands>
SNN_DEVICE void locate(const DeviceGeometry<kOperands>& geometry, int64_t index, int64_t (&at)[kOperands]) {
  SNN_UNROLL
  for (int k = 0; k < kOperands; ++k) at[k] = 0;
  SNN_NO_UNROLL
  for (int d = geometry.dims - 1; d > 0; --d) {
    const int64_t size = geometry.size[d];
    // A GPU has no instruction for division; of 64 bits it takes many more of others than of 32.
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
