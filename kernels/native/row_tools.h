// Conversions and small jobs on contiguous runs of elements, compiled once per instruction set.
#pragma once

#include <cstdint>

namespace snn_core {

// Storage types of sequences. State is float32 always.
enum Storage { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kStorageCount = 3 };

struct RowTools {
  void (*to_float[kStorageCount])(const void* source, float* target, int64_t n);
  void (*from_float[kStorageCount])(const float* source, void* target, int64_t n);
  void (*add[kStorageCount])(const void* source, float* target, int64_t n);  // target += source
  // A copy past the caches; target aligned to 64 bytes.
  void (*stream)(const float* source, float* target, int64_t n);
  void (*fill)(float value, float* target, int64_t n);  // std::fill_n stores one by one at -O2
  // Spikes to bits, bits to spikes: `n` spikes, ceil(n / 8) bytes.
  void (*pack[kStorageCount])(const void* source, uint8_t* target, int64_t n);
  void (*unpack[kStorageCount])(const uint8_t* source, void* target, int64_t n);
  int64_t (*count)(const uint8_t* bits, int64_t bytes);  // of set bits
};

extern const RowTools row_tools_baseline;
#if defined(SNN_HAS_AVX2)
extern const RowTools row_tools_avx2;
#endif
#if defined(SNN_HAS_AVX512)
extern const RowTools row_tools_avx512;
#endif

}  // namespace snn_core
