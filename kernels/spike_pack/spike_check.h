// Whether elements are spikes, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "native/row_tools.h"

namespace snn_core {

struct SpikeCheck {
  // Whether all elements are 0, -0 or 1, by storage type.
  bool (*binary[kStorageCount])(const void* source, int64_t n);
};

extern const SpikeCheck spike_check_baseline;
#if defined(SNN_HAS_AVX2)
extern const SpikeCheck spike_check_avx2;
#endif
#if defined(SNN_HAS_AVX512)
extern const SpikeCheck spike_check_avx512;
#endif

}  // namespace snn_core
