// Which inputs of a row are not zero (NaN is not), one bit each.
#pragma once

#include <cstdint>

namespace snn_core {

// The bytes of a word that are not zero.
inline __attribute__((always_inline)) uint64_t nonzero_bytes(uint64_t word) {
  constexpr uint64_t low = 0x7f7f7f7f7f7f7f7f;
  const uint64_t high_bits = (((word & low) + low) | word) & ~low;
  return ((high_bits >> 7) * 0x0102040810204080) >> 56;
}

// Of up to 64 inputs, `stride` elements apart.
inline __attribute__((always_inline)) uint64_t nonzero_inputs(const float* row, int64_t stride, int64_t count) {
  uint64_t mask = 0;
  for (int64_t i = 0; i < count; ++i) mask |= static_cast<uint64_t>(row[i * stride] != 0.0f) << i;
  return mask;
}

inline __attribute__((always_inline)) uint64_t nonzero_inputs(const uint8_t* row, int64_t stride, int64_t count) {
  uint64_t mask = 0;
  int64_t i = 0;
  for (; stride == 1 && i + 8 <= count; i += 8) {
    uint64_t word;
    __builtin_memcpy(&word, row + i, 8);
    mask |= nonzero_bytes(word) << i;
  }
  for (; i < count; ++i) mask |= static_cast<uint64_t>(row[i * stride] != 0) << i;
  return mask;
}

}  // namespace snn_core
