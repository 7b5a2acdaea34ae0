// Loads and stores of neighbouring float32, bfloat16 or float16 elements by one thread, in as few accesses as their
// number allows: 4 float32 or 8 16-bit elements are one access of 16 bytes.
#pragma once

#include <cstddef>
#if defined(SNN_EMULATED)
#include <stdexcept>
#endif

#include "native/device.h"

namespace snn_core {

SNN_DEVICE float float_of_bits(uint32_t bits) {
#if defined(SNN_EMULATED)
  return __builtin_bit_cast(float, bits);
#else
  return __uint_as_float(bits);
#endif
}
SNN_DEVICE uint32_t bits_of_float(float value) {
#if defined(SNN_EMULATED)
  return __builtin_bit_cast(uint32_t, value);
#else
  return __float_as_uint(value);
#endif
}

// A GPU stops at a misaligned access; so does the emulation.
SNN_DEVICE void check_aligned([[maybe_unused]] const void* address, [[maybe_unused]] size_t alignment) {
#if defined(SNN_EMULATED)
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) throw std::runtime_error("misaligned access");
#endif
}

struct Float32 {
  using Element = uint32_t;
  static constexpr uint32_t kOne = 0x3f800000u;
};

// The 16-bit formats turn two floats into one word, the first into the lower half. Rounding is to nearest even.
struct BFloat16 {
  using Element = uint16_t;
  static constexpr uint32_t kOne = 0x3f80u;

  static SNN_DEVICE float lower(uint32_t word) { return float_of_bits(word << 16); }
  static SNN_DEVICE float upper(uint32_t word) { return float_of_bits(word & 0xffff0000u); }
#if defined(SNN_EMULATED)
  static SNN_DEVICE uint32_t round(float value) {
    const uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;  // NaN stays NaN
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  }
  static SNN_DEVICE uint32_t pack(float first, float second) { return round(first) | round(second) << 16; }
#else
  static SNN_DEVICE uint32_t pack(float first, float second) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
  }
#endif
};

struct Float16 {
  using Element = uint16_t;
  static constexpr uint32_t kOne = 0x3c00u;

#if defined(SNN_EMULATED)
  static SNN_DEVICE float widen(uint16_t bits) { return static_cast<float>(__builtin_bit_cast(_Float16, bits)); }
  static SNN_DEVICE uint32_t round(float value) {
    return __builtin_bit_cast(uint16_t, static_cast<_Float16>(value));
  }
  static SNN_DEVICE uint32_t pack(float first, float second) { return round(first) | round(second) << 16; }
#else
  static SNN_DEVICE float widen(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
  }
  static SNN_DEVICE uint32_t pack(float first, float second) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
  }
#endif
  static SNN_DEVICE float lower(uint32_t word) { return widen(static_cast<uint16_t>(word & 0xffffu)); }
  static SNN_DEVICE float upper(uint32_t word) { return widen(static_cast<uint16_t>(word >> 16)); }
};

// kWidth neighbouring elements as they lie in memory, one or more whole words.
template <class Storage, int kWidth>
struct Pack {
  static constexpr int kBytes = static_cast<int>(sizeof(typename Storage::Element)) * kWidth;
  static constexpr int kWords = kBytes / 4;
  struct alignas(kBytes < 16 ? kBytes : 16) Words {
    uint32_t word[kWords];
  };
  Words words;

  SNN_DEVICE void load(const typename Storage::Element* source) {
    check_aligned(source, alignof(Words));
    words = *reinterpret_cast<const Words*>(source);
  }
  SNN_DEVICE void store(typename Storage::Element* target) const {
    check_aligned(target, alignof(Words));
    *reinterpret_cast<Words*>(target) = words;
  }
  SNN_DEVICE void fill(typename Storage::Element element) {
    SNN_UNROLL
    for (int i = 0; i < kWords; ++i) {
      words.word[i] = sizeof(element) == 4 ? element : static_cast<uint32_t>(element) * 0x10001u;
    }
  }
  SNN_DEVICE float get(int i) const {
    if constexpr (sizeof(typename Storage::Element) == 4) {
      return float_of_bits(words.word[i]);
    } else {
      return i % 2 == 0 ? Storage::lower(words.word[i / 2]) : Storage::upper(words.word[i / 2]);
    }
  }
  SNN_DEVICE void set(const float (&values)[kWidth]) {
    SNN_UNROLL
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(typename Storage::Element) == 4) {
        words.word[i] = bits_of_float(values[i]);
      } else {
        words.word[i] = Storage::pack(values[2 * i], values[2 * i + 1]);
      }
    }
  }
  // 1 where `spikes` is, without a conversion.
  SNN_DEVICE void set_spikes(const bool (&spikes)[kWidth]) {
    SNN_UNROLL
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(typename Storage::Element) == 4) {
        words.word[i] = spikes[i] ? Storage::kOne : 0u;
      } else {
        words.word[i] = (spikes[2 * i] ? Storage::kOne : 0u) | (spikes[2 * i + 1] ? Storage::kOne << 16 : 0u);
      }
    }
  }
};

// One 16-bit element: half a word.
template <class Storage>
struct HalfWord {
  uint16_t element;

  SNN_DEVICE void load(const uint16_t* source) { element = *source; }
  SNN_DEVICE void store(uint16_t* target) const { *target = element; }
  SNN_DEVICE void fill(uint16_t value) { element = value; }
  SNN_DEVICE float get(int) const { return Storage::lower(element); }
  SNN_DEVICE void set(const float (&values)[1]) { element = static_cast<uint16_t>(Storage::pack(values[0], 0.0f)); }
  SNN_DEVICE void set_spikes(const bool (&spikes)[1]) {
    element = static_cast<uint16_t>(spikes[0] ? Storage::kOne : 0u);
  }
};
template <>
struct Pack<BFloat16, 1> : HalfWord<BFloat16> {};
template <>
struct Pack<Float16, 1> : HalfWord<Float16> {};

// `broadcast`: the one element at `source` stands for all of them.
template <class Storage, int kWidth>
SNN_DEVICE void load_pack(Pack<Storage, kWidth>& pack, const typename Storage::Element* source, bool broadcast) {
  if (broadcast) {
    pack.fill(*source);
  } else {
    pack.load(source);
  }
}

template <int kWidth>
SNN_DEVICE void load_floats(float (&values)[kWidth], const float* source, bool broadcast) {
  Pack<Float32, kWidth> pack;
  load_pack(pack, reinterpret_cast<const uint32_t*>(source), broadcast);
  SNN_UNROLL
  for (int i = 0; i < kWidth; ++i) values[i] = pack.get(i);
}

template <int kWidth>
SNN_DEVICE void store_floats(const float (&values)[kWidth], float* target) {
  Pack<Float32, kWidth> pack;
  pack.set(values);
  pack.store(reinterpret_cast<uint32_t*>(target));
}

}  // namespace snn_core
