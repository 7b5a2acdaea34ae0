// What spike_pack.cu and spike_pack_kernels.cu (compiled without torch's headers) share.
#pragma once

#include <cstdint>

#include "native/device_geometry.h"

namespace snn_core {

constexpr int kSpikePackThreads = 256;

struct SpikePackArguments {
  // kPosition counts the elements before a byte along the packed dimension.
  enum { kSpikes, kPacked, kPosition, kCount };
  void* spikes;
  uint8_t* packed;
  int64_t size;         // of the packed dimension, in elements
  int64_t lane_stride;  // between the elements of a byte
  uint32_t one;         // bits of 1 in the type of the spikes
  DeviceGeometry<kCount> geometry;
};

using SpikePackKernel = void (*)(SpikePackArguments);

// `bytes`: size of an element, 2 or 4. `wide`: kVector.
SpikePackKernel cuda_spike_pack(int64_t bytes, bool wide);
SpikePackKernel cuda_spike_unpack(int64_t bytes, bool wide);

}  // namespace snn_core
