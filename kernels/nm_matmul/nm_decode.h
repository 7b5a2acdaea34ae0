// What the row kernels read of a weight: runs of its values as float32 or bfloat16, and positions in its blocks.
// Included by per-instruction-set sources alone, as native/vectors.h is.
#pragma once

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own AVX-512 header
#endif
#include "native/vectors.h"
#include "nm_matmul/nm_rows.h"

namespace snn_core {
namespace {

typedef uint8_t VectorB __attribute__((vector_size(kLanes)));

template <class F>
struct ByteLanes {
  using B = uint8_t;
  static SNN_VECTOR_INLINE uint32_t widen(B x) { return x; }
};
template <>
struct ByteLanes<VectorF> {
  using B = VectorB;
  static SNN_VECTOR_INLINE VectorU widen(B x) {
    // GCC 12 converts these lane by lane where it is left to it: 20 times the time.
#if defined(__AVX512F__)
    return (VectorU)_mm512_cvtepu8_epi32((__m128i)x);
#elif defined(__AVX2__)
    return (VectorU)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(__builtin_bit_cast(int64_t, x)));
#else
    return __builtin_convertvector(x, VectorU);
#endif
  }
};

// Eight-bit values. Both have at most 8 significant bits: exact in float32 and in bfloat16.
struct Int8 {
  int8_t value;
};
struct Float8 {
  uint8_t bits;
};

SNN_VECTOR_INLINE float int_to_float(int32_t x) { return static_cast<float>(x); }
SNN_VECTOR_INLINE VectorF int_to_float(VectorI x) { return __builtin_convertvector(x, VectorF); }

SNN_VECTOR_INLINE float count_to_float(uint32_t x) { return static_cast<float>(static_cast<int32_t>(x)); }
SNN_VECTOR_INLINE VectorF count_to_float(VectorU x) { return int_to_float((VectorI)x); }

template <class F>
SNN_VECTOR_INLINE F load(const Int8* p) {
  const auto x = ByteLanes<F>::widen(load_unaligned<typename ByteLanes<F>::B>(p));
  if constexpr (LaneTraits<F>::lanes == 1) {
    return int_to_float(static_cast<int32_t>(x << 24) >> 24);
  } else {
    return int_to_float((VectorI)(x << 24) >> 24);
  }
}

// e4m3fn: no infinity, NaN is all ones.
template <class F>
SNN_VECTOR_INLINE F load(const Float8* p) {
  using L = LaneTraits<F>;
  const auto x = ByteLanes<F>::widen(load_unaligned<typename ByteLanes<F>::B>(p));
  const auto magnitude = x & 0x7fu;
  // Subnormal numbers are multiples of 2^-9, and are counted: as float32 they would be subnormal, too, before scaling,
  // and those may be flushed to 0.
  const auto normal = (magnitude << 20) + (120u << 23);
  const auto small = L::bits(count_to_float(magnitude) * 0.001953125f);
  const auto finite = magnitude < 8u ? small : normal;
  const auto bits = magnitude == 0x7fu ? (magnitude & 0u) + 0x7fc00000u : finite;
  return L::value(bits | (x & 0x80u) << 24);
}

template <class T>
SNN_VECTOR_INLINE void decode_run(const T* p, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_unaligned(out + i, load<VectorF>(p + i));
  for (; i < count; ++i) out[i] = load<float>(p + i);
}
// The upper halves.
SNN_VECTOR_INLINE VectorH upper_halves(VectorF x) {
  const VectorU bits = LaneTraits<VectorF>::bits(x) >> 16;
#if defined(__AVX512F__)
  return (VectorH)_mm512_cvtepi32_epi16((__m512i)bits);
#else
  return __builtin_convertvector(bits, VectorH);
#endif
}
template <class T>
SNN_VECTOR_INLINE void decode_run(const T* p, int64_t count, uint16_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_unaligned(out + i, upper_halves(load<VectorF>(p + i)));
  for (; i < count; ++i) out[i] = static_cast<uint16_t>(LaneTraits<float>::bits(load<float>(p + i)) >> 16);
}

// `count` values from element `start` on, in float32.
inline void decode_values(const NMWeight& w, int64_t start, int64_t count, float* out) {
  switch (w.type) {
    case kNMFloat32: return decode_run(static_cast<const float*>(w.values) + start, count, out);
    case kNMBFloat16: return decode_run(static_cast<const Bf16*>(w.values) + start, count, out);
    case kNMFloat16: return decode_run(static_cast<const Fp16*>(w.values) + start, count, out);
    case kNMInt8: return decode_run(static_cast<const Int8*>(w.values) + start, count, out);
    default: return decode_run(static_cast<const Float8*>(w.values) + start, count, out);
  }
}

// Types whose values are exact in bfloat16.
inline bool fits_bf16(const NMWeight& w) { return w.type != kNMFloat32 && w.type != kNMFloat16; }

// The same in bfloat16, for these types.
inline void decode_bf16(const NMWeight& w, int64_t start, int64_t count, uint16_t* out) {
  switch (w.type) {
    case kNMBFloat16: return decode_run(static_cast<const Bf16*>(w.values) + start, count, out);
    case kNMInt8: return decode_run(static_cast<const Int8*>(w.values) + start, count, out);
    default: return decode_run(static_cast<const Float8*>(w.values) + start, count, out);
  }
}

// Kept values of an output.
inline int64_t kept_count(const NMWeight& w) { return w.indices != nullptr ? w.k() / w.m * w.n : w.k(); }

inline int index_bits(const NMWeight& w) { return w.m > 1 ? 32 - __builtin_clz(static_cast<unsigned>(w.m - 1)) : 0; }

}  // namespace
}  // namespace snn_core
