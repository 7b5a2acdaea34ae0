// Elements of weights and activations, one at a time, in any of the types.
#pragma once

#include "native/device.h"
#include "native/device_storage.h"
#include "nm_matmul/nm_cuda.h"

namespace snn_core {

SNN_DEVICE int element_bytes(int type) {
  return type == kCudaFloat32 ? 4 : type == kCudaBFloat16 || type == kCudaFloat16 ? 2 : 1;
}

// e4m3fn: 4 bits of exponent, 3 of mantissa, no infinities.
SNN_DEVICE float float_of_e4m3(uint32_t bits) {
  if ((bits & 0x7fu) == 0x7fu) return float_of_bits(0x7fc00000u);
  // As a float of the same fields, denormal ones too, which is smaller by the difference of the biases.
  return float_of_bits((bits & 0x80u) << 24 | (bits & 0x7fu) << 20) * float_of_bits((127u + 120u) << 23);
}

SNN_DEVICE float read_element(const void* data, int64_t i, int type) {
  switch (type) {
    case kCudaFloat32:
      return static_cast<const float*>(data)[i];
    case kCudaBFloat16:
      return BFloat16::lower(static_cast<const uint16_t*>(data)[i]);
    case kCudaFloat16:
      return Float16::lower(static_cast<const uint16_t*>(data)[i]);
    case kCudaInt8:
      return static_cast<float>(static_cast<const int8_t*>(data)[i]);
    default:
      return float_of_e4m3(static_cast<const uint8_t*>(data)[i]);
  }
}

// Rounds to nearest even. Of the floating-point types of 16 and 32 bits.
SNN_DEVICE void write_element(void* data, int64_t i, int type, float value) {
  if (type == kCudaFloat32) {
    static_cast<float*>(data)[i] = value;
  } else {
    const uint32_t word = type == kCudaBFloat16 ? BFloat16::pack(value, 0.0f) : Float16::pack(value, 0.0f);
    static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(word);
  }
}

SNN_DEVICE void copy_element(const void* source, int64_t i, void* target, int64_t j, int bytes) {
  if (bytes == 4) {
    static_cast<uint32_t*>(target)[j] = static_cast<const uint32_t*>(source)[i];
  } else if (bytes == 2) {
    static_cast<uint16_t*>(target)[j] = static_cast<const uint16_t*>(source)[i];
  } else {
    static_cast<uint8_t*>(target)[j] = static_cast<const uint8_t*>(source)[i];
  }
}

SNN_DEVICE void clear_element(void* target, int64_t j, int bytes) {
  if (bytes == 4) {
    static_cast<uint32_t*>(target)[j] = 0;
  } else if (bytes == 2) {
    static_cast<uint16_t*>(target)[j] = 0;
  } else {
    static_cast<uint8_t*>(target)[j] = 0;
  }
}

// Position `i` of a stream of `bits`-bit positions. Of 4 and 8 in a byte none lies in two.
SNN_DEVICE int read_position(const uint8_t* indices, int64_t index_bytes, int64_t i, int bits) {
  const int64_t first = i * bits;
  const int64_t at = first >> 3;
  const int shift = static_cast<int>(first & 7);
  uint32_t pair = indices[at];
  if (shift + bits > 8 && at + 1 < index_bytes) pair |= static_cast<uint32_t>(indices[at + 1]) << 8;
  return static_cast<int>(pair >> shift & ((1u << bits) - 1));
}

}  // namespace snn_core
