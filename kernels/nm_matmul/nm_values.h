// Weight values of every type as float32 or bfloat16, and compressed rows written out. For per-instruction-set sources.
#pragma once

#include "native/vectors.h"
#include "nm_matmul/nm_rows.h"

namespace snn_core {
namespace {

struct Int8 {
  int8_t value;
};
struct Float8 {  // e4m3fn
  uint8_t bits;
};

// One value as float32; exact.
SNN_VECTOR_INLINE float value_of(const float* p) { return *p; }
SNN_VECTOR_INLINE float value_of(const Bf16* p) { return load<float>(p); }
SNN_VECTOR_INLINE float value_of(const Fp16* p) { return load<float>(p); }
SNN_VECTOR_INLINE float value_of(const Int8* p) { return p->value; }
SNN_VECTOR_INLINE float value_of(const Float8* p) {
  const uint32_t sign = (p->bits & 0x80u) << 24, magnitude = p->bits & 0x7fu;
  if (magnitude == 0x7fu) return __builtin_bit_cast(float, sign | 0x7fc00000u);
  if (magnitude < 8) return __builtin_bit_cast(float, sign | __builtin_bit_cast(uint32_t, 0.001953125f * magnitude));
  return __builtin_bit_cast(float, sign | ((magnitude << 20) + (120u << 23)));
}

// What is written for a value: itself as float32, or 16 bits: the upper half of the float32 (exact for bfloat16, int8
// and e4m3), or a float16 as it is.
template <class V>
SNN_VECTOR_INLINE void put(float* out, const V* p) {
  *out = value_of(p);
}
template <class V>
SNN_VECTOR_INLINE void put(uint16_t* out, const V* p) {
  if constexpr (__is_same(V, Fp16) || __is_same(V, Bf16)) {
    *out = p->bits;
  } else {
    *out = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, value_of(p)) >> 16);
  }
}

SNN_VECTOR_INLINE int index_bits(int m) { return m > 1 ? 32 - __builtin_clz(m - 1) : 0; }

// Up to 57 bits of the stream from bit `first` on, zeros past its end.
SNN_VECTOR_INLINE uint64_t stream_bits(const NMWeight& w, int64_t first) {
  const int64_t byte = first / 8;
  uint64_t word = 0;
  if (byte + 8 <= w.index_bytes) {
    word = load_unaligned<uint64_t>(w.indices + byte);
  } else {
    for (int64_t i = byte; i < w.index_bytes; ++i) word |= static_cast<uint64_t>(w.indices[i]) << (8 * (i - byte));
  }
  return word >> (first % 8);
}

// Inputs first <= k < last of a row, for any pattern; `first` may lie inside a block.
template <class V, class Element>
void expand_any(const NMWeight& w, int64_t output, int64_t first, int64_t last, Element* out) {
  const V* const values = static_cast<const V*>(w.values);
  if (w.indices == nullptr) {
    for (int64_t k = first; k < last; ++k) put(out + (k - first), values + output * w.k() + k);
    return;
  }
  __builtin_memset(out, 0, (last - first) * sizeof(Element));
  const int bits = index_bits(w.m);
  const int64_t row_block = output * (w.k() / w.m);
  for (int64_t block = first / w.m; block * w.m < last; ++block) {
    const int64_t value = (row_block + block) * w.n;
    for (int i = 0; i < w.n; ++i) {
      const int64_t position = stream_bits(w, (value + i) * bits) & ((1u << bits) - 1);
      const int64_t k = block * w.m + position;
      if (k >= first && k < last) put(out + (k - first), values + value + i);
    }
  }
}

template <class V>
struct Typed {
  using Value = V;
};

// Calls body(Typed<V>) with the type of the values.
template <class Body>
SNN_VECTOR_INLINE void with_type(int type, Body body) {
  switch (type) {
    case kNMFloat32: return body(Typed<float>{});
    case kNMBFloat16: return body(Typed<Bf16>{});
    case kNMFloat16: return body(Typed<Fp16>{});
    case kNMInt8: return body(Typed<Int8>{});
    default: return body(Typed<Float8>{});
  }
}

}  // namespace
}  // namespace snn_core
