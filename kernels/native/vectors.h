// Short vectors of the instruction set that this file is compiled for, on the compiler's vector extensions, and loads
// and stores that convert the storage types to float32. Included by per-instruction-set sources alone.
//
// No standard library here: an inline function compiled for AVX-512 must never be the copy the linker keeps for all.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own AVX-512 header
#endif
#include <immintrin.h>
#endif

#define SNN_VECTOR_INLINE inline __attribute__((always_inline))

namespace snn_core {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float VectorF __attribute__((vector_size(4 * kLanes)));
typedef int32_t VectorI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VectorU __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VectorH __attribute__((vector_size(2 * kLanes)));

// What a storage element is: float, or the bits of a 16-bit type.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

// Integer counterpart and reinterpretation, for one lane and for a vector.
template <class F>
struct LaneTraits;
template <>
struct LaneTraits<float> {
  using U = uint32_t;
  using H = uint16_t;
  static constexpr int lanes = 1;
  static SNN_VECTOR_INLINE U bits(float x) { return __builtin_bit_cast(U, x); }
  static SNN_VECTOR_INLINE float value(U x) { return __builtin_bit_cast(float, x); }
  static SNN_VECTOR_INLINE U widen(H x) { return x; }
  static SNN_VECTOR_INLINE H narrow(U x) { return static_cast<H>(x); }
};
template <>
struct LaneTraits<VectorF> {
  using U = VectorU;
  using H = VectorH;
  static constexpr int lanes = kLanes;
  static SNN_VECTOR_INLINE U bits(VectorF x) { return (U)x; }
  static SNN_VECTOR_INLINE VectorF value(U x) { return (VectorF)x; }
  static SNN_VECTOR_INLINE U widen(H x) { return __builtin_convertvector(x, U); }
  static SNN_VECTOR_INLINE H narrow(U x) { return __builtin_convertvector(x, H); }
};

template <class T>
SNN_VECTOR_INLINE T load_unaligned(const void* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof(T));
  return value;
}
template <class T>
SNN_VECTOR_INLINE void store_unaligned(void* p, T value) {
  __builtin_memcpy(p, &value, sizeof(T));
}

// bfloat16: the upper half of a float32; rounded to nearest even, NaN stays NaN.
template <class F>
SNN_VECTOR_INLINE F from_bf16(typename LaneTraits<F>::H x) {
  return LaneTraits<F>::value(LaneTraits<F>::widen(x) << 16);
}
template <class F>
SNN_VECTOR_INLINE typename LaneTraits<F>::H to_bf16(F x) {
  const auto bits = LaneTraits<F>::bits(x);
  const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const auto quiet_nan = (bits >> 16) | 0x40u;
  return LaneTraits<F>::narrow((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

// float16 by plain arithmetic: where there is no instruction for it, and for single lanes.
template <class F>
SNN_VECTOR_INLINE F from_fp16_portable(typename LaneTraits<F>::H half) {
  using L = LaneTraits<F>;
  const auto x = L::widen(half);
  const auto sign = (x & 0x8000u) << 16;
  const auto magnitude = x & 0x7fffu;
  // Exponent and mantissa at their places, then times 2^112: exact for normal and subnormal numbers alike.
  const F scaled = L::value(magnitude << 13) * 5.192296858534828e33f;
  const auto special = (magnitude << 13) | 0x7f800000u;  // infinity and NaN keep their mantissa
  const auto bits = magnitude >= 0x7c00u ? special : L::bits(scaled);
  return L::value(bits | sign);
}
template <class F>
SNN_VECTOR_INLINE typename LaneTraits<F>::H to_fp16_portable(F x) {
  using L = LaneTraits<F>;
  const auto bits = L::bits(x);
  const auto sign = (bits >> 16) & 0x8000u;
  const auto magnitude = bits & 0x7fffffffu;
  // Normal result: move the exponent and round to nearest even. Subnormal: adding 0.5 leaves the rounded mantissa in
  // the low bits. From 65520 on: infinity.
  const auto normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const auto subnormal = L::bits(L::value(magnitude) + 0.5f) - 0x3f000000u;
  const auto finite = magnitude < (113u << 23) ? subnormal : normal;
  const auto capped = magnitude >= 0x477ff000u ? (finite & 0u) + 0x7c00u : finite;
  const auto nan = ((magnitude >> 13) & 0x3ffu) | 0x7e00u;
  return L::narrow((magnitude > 0x7f800000u ? nan : capped) | sign);
}

template <class F>
SNN_VECTOR_INLINE F load(const float* p) {
  return load_unaligned<F>(p);
}
template <class F>
SNN_VECTOR_INLINE F load(const Bf16* p) {
  return from_bf16<F>(load_unaligned<typename LaneTraits<F>::H>(p));
}
template <class F>
SNN_VECTOR_INLINE F load(const Fp16* p) {
  using H = typename LaneTraits<F>::H;
#if defined(__AVX512F__)
  if constexpr (LaneTraits<F>::lanes == 16) return (F)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && defined(__F16C__)
  if constexpr (LaneTraits<F>::lanes == 8) return (F)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#endif
  return from_fp16_portable<F>(load_unaligned<H>(p));
}

template <class F>
SNN_VECTOR_INLINE typename LaneTraits<F>::H round_fp16(F x) {
#if defined(__AVX512F__)
  if constexpr (LaneTraits<F>::lanes == 16) return (VectorH)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__) && defined(__F16C__)
  if constexpr (LaneTraits<F>::lanes == 8) return (VectorH)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#endif
  return to_fp16_portable<F>(x);
}

// Stores. kStream bypasses the caches: for outputs too large to stay in them (the address must be aligned to the
// vector); a streamed store needs no read of the line it overwrites.
template <bool kStream, class F>
SNN_VECTOR_INLINE void store(float* p, F x) {
#if defined(__AVX512F__)
  if constexpr (kStream && LaneTraits<F>::lanes == 16) return _mm512_stream_ps(p, (__m512)x);
#elif defined(__AVX2__)
  if constexpr (kStream && LaneTraits<F>::lanes == 8) return _mm256_stream_ps(p, (__m256)x);
#elif defined(__SSE2__)
  if constexpr (kStream && LaneTraits<F>::lanes == 4) return _mm_stream_ps(p, (__m128)x);
#endif
  store_unaligned(p, x);
}
template <bool kStream, class H>
SNN_VECTOR_INLINE void store_half(uint16_t* p, H x) {
#if defined(__AVX512F__)
  if constexpr (kStream && sizeof(H) == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)x);
#elif defined(__AVX2__)
  if constexpr (kStream && sizeof(H) == 16) return _mm_stream_si128((__m128i*)p, (__m128i)x);
#endif
  store_unaligned(p, x);
}
template <bool kStream, class F>
SNN_VECTOR_INLINE void store(Bf16* p, F x) {
  store_half<kStream>(&p->bits, to_bf16<F>(x));
}
template <bool kStream, class F>
SNN_VECTOR_INLINE void store(Fp16* p, F x) {
  store_half<kStream>(&p->bits, round_fp16<F>(x));
}

// 1 where `fired`, else 0, in the storage type; cheaper than rounding a float.
template <bool kStream, class F, class M>
SNN_VECTOR_INLINE void store_spikes(float* p, M fired) {
  using U = typename LaneTraits<F>::U;
  const U bits = fired ? (U{} + 0x3f800000u) : U{};
  store<kStream>(p, LaneTraits<F>::value(bits));
}
template <bool kStream, class F, class M>
SNN_VECTOR_INLINE void store_spikes(Bf16* p, M fired) {
  using L = LaneTraits<F>;
  const typename L::U bits = fired ? (typename L::U{} + 0x3f80u) : typename L::U{};
  store_half<kStream>(&p->bits, L::narrow(bits));
}
template <bool kStream, class F, class M>
SNN_VECTOR_INLINE void store_spikes(Fp16* p, M fired) {
  using L = LaneTraits<F>;
  const typename L::U bits = fired ? (typename L::U{} + 0x3c00u) : typename L::U{};
  store_half<kStream>(&p->bits, L::narrow(bits));
}

// One bit a lane, lane 0 lowest.
SNN_VECTOR_INLINE uint32_t lane_bits(VectorI fired) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)fired);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)fired));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)fired));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (fired[i] & 1u) << i;
  return bits;
#endif
}

// Makes streamed stores visible to other threads.
SNN_VECTOR_INLINE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace snn_core
