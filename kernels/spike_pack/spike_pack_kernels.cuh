// Device text of spike_pack and spike_unpack: a thread owns one byte and the eight elements that it stands for. With
// kVector they lie side by side, aligned to 16 bytes, and none is missing.
#pragma once

#include "native/device.h"
#include "native/device_storage.h"
#include "spike_pack/spike_pack_cuda.h"

namespace snn_core {

// Elements of the byte that `position` elements of the packed dimension come before.
SNN_DEVICE int lanes_at(const SpikePackArguments& a, int64_t position) {
  return a.size - position < 8 ? static_cast<int>(a.size - position) : 8;
}

// Any value but 0 and -0 is a spike, NaN too. The types differ in size alone.
template <class Storage, bool kVector>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kSpikePackThreads, 4) spike_pack_kernel(SNN_GRID_CONSTANT SpikePackArguments a) {
  using A = SpikePackArguments;
  using Element = typename Storage::Element;
  constexpr uint32_t kMagnitude = sizeof(Element) == 4 ? 0x7fffffffu : 0x7fffu;
  for (int64_t group = global_thread(); group < a.geometry.groups; group += global_threads()) {
    int64_t at[A::kCount];
    locate(a.geometry, group, at);
    const Element* spikes = static_cast<const Element*>(a.spikes) + at[A::kSpikes];
    unsigned byte = 0;
    if constexpr (kVector) {
      Pack<Storage, 8> pack;
      pack.load(spikes);
      SNN_UNROLL
      for (int i = 0; i < 8; ++i) {
        constexpr int kEach = sizeof(Element) == 4 ? 1 : 2;  // elements a word
        const uint32_t bits = pack.words.word[i / kEach] >> (i % kEach * 16);
        if ((bits & kMagnitude) != 0) byte |= 1u << i;
      }
    } else {
      const int lanes = lanes_at(a, at[A::kPosition]);
      SNN_UNROLL
      for (int i = 0; i < 8; ++i) {
        if (i < lanes && (spikes[i * a.lane_stride] & kMagnitude) != 0) byte |= 1u << i;
      }
    }
    a.packed[at[A::kPacked]] = static_cast<uint8_t>(byte);
  }
}

template <class Storage, bool kVector>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kSpikePackThreads, 4) spike_unpack_kernel(SNN_GRID_CONSTANT SpikePackArguments a) {
  using A = SpikePackArguments;
  using Element = typename Storage::Element;
  for (int64_t group = global_thread(); group < a.geometry.groups; group += global_threads()) {
    int64_t at[A::kCount];
    locate(a.geometry, group, at);
    Element* spikes = static_cast<Element*>(a.spikes) + at[A::kSpikes];
    const unsigned byte = a.packed[at[A::kPacked]];
    if constexpr (kVector) {
      Pack<Storage, 8> pack;
      SNN_UNROLL
      for (int i = 0; i < pack.kWords; ++i) {
        if constexpr (sizeof(Element) == 4) {
          pack.words.word[i] = (byte >> i & 1) != 0 ? a.one : 0u;
        } else {
          pack.words.word[i] = ((byte >> 2 * i & 1) != 0 ? a.one : 0u) | ((byte >> 2 * i & 2) != 0 ? a.one << 16 : 0u);
        }
      }
      pack.store(spikes);
    } else {
      const int lanes = lanes_at(a, at[A::kPosition]);
      SNN_UNROLL
      for (int i = 0; i < 8; ++i) {
        if (i < lanes) spikes[i * a.lane_stride] = static_cast<Element>((byte >> i & 1) != 0 ? a.one : 0u);
      }
    }
  }
}

}  // namespace snn_core
