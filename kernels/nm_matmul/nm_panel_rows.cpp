// Bodies of NMPanelKernel: tiles of weights are written out row by row, then transposed in registers.

#include "nm_matmul/nm_expand.h"
#include "nm_matmul/nm_panel_layout.h"
#include "nm_matmul/nm_panels.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

constexpr int kTile = 4 * kSpan;  // inputs of a tile: 32 rows of them take half an L1 cache

// a0 b0 a1 b1 ... of the lower or upper halves.
#if defined(__AVX512F__)
#define SNN_LOW_LANES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SNN_HIGH_LANES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define SNN_LOW_LANES 0, 8, 1, 9, 2, 10, 3, 11
#define SNN_HIGH_LANES 4, 12, 5, 13, 6, 14, 7, 15
#else
#define SNN_LOW_LANES 0, 4, 1, 5
#define SNN_HIGH_LANES 2, 6, 3, 7
#endif
#if defined(__clang__) || __GNUC__ >= 12
SNN_VECTOR_INLINE VectorU zip_low(VectorU a, VectorU b) { return __builtin_shufflevector(a, b, SNN_LOW_LANES); }
SNN_VECTOR_INLINE VectorU zip_high(VectorU a, VectorU b) { return __builtin_shufflevector(a, b, SNN_HIGH_LANES); }
#else
SNN_VECTOR_INLINE VectorU zip_low(VectorU a, VectorU b) { return __builtin_shuffle(a, b, VectorU{SNN_LOW_LANES}); }
SNN_VECTOR_INLINE VectorU zip_high(VectorU a, VectorU b) { return __builtin_shuffle(a, b, VectorU{SNN_HIGH_LANES}); }
#endif

// kLanes x kLanes: log2(kLanes) perfect shuffles of rows and lanes.
SNN_VECTOR_INLINE void transpose(VectorU (&row)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    VectorU next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = zip_low(row[i], row[i + kLanes / 2]);
      next[2 * i + 1] = zip_high(row[i], row[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) row[i] = next[i];
  }
}

// kLanes rows of up to kTile elements, of 32 bits or of twice 16, as columns at out[k * stride].
template <class Load>
SNN_VECTOR_INLINE void transpose_tile(int64_t count, char* out, int64_t stride, Load load_row) {
  for (int64_t k = 0; k < count; k += kLanes) {
    VectorU row[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) row[i] = load_row(i, k);
    transpose(row);
    const int64_t here = count - k < kLanes ? count - k : kLanes;
    if (here == kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store_unaligned(out + (k + i) * stride, row[i]);
    } else {
      for (int64_t i = 0; i < here; ++i) store_unaligned(out + (k + i) * stride, row[i]);
    }
  }
}

template <class V>
void decode_narrow(const NMWeight& w, int64_t first, int pairs, int64_t first_k, int64_t last_k, char* panel) {
  const int64_t stride = pairs * sizeof(VectorU);
  alignas(64) uint16_t tile[2 * kLanes][kTile];
  for (int q = 0; q < pairs; ++q) {
    for (int64_t k = first_k; k < last_k; k += kTile) {
      const int64_t count = last_k - k < kTile ? last_k - k : kTile;
      for (int i = 0; i < 2 * kLanes; ++i) expand<V>(w, first + 2 * kLanes * q + i, k, k + count, tile[i]);
      char* const out = panel + (k - first_k) * stride + q * sizeof(VectorU);
      transpose_tile(count, out, stride, [&](int i, int64_t j) __attribute__((always_inline)) {
        const auto low = LaneTraits<VectorF>::widen(load_unaligned<VectorH>(tile[low_output(i)] + j));
        const auto high = LaneTraits<VectorF>::widen(load_unaligned<VectorH>(tile[high_output(i)] + j));
        return low | (high << 16);
      });
    }
  }
}

template <class V>
void decode_wide(const NMWeight& w, int64_t first, int pairs, int64_t first_k, int64_t last_k, char* panel) {
  const int64_t stride = 2 * pairs * sizeof(VectorU);
  alignas(64) float tile[kLanes][kTile];
  for (int q = 0; q < 2 * pairs; ++q) {
    for (int64_t k = first_k; k < last_k; k += kTile) {
      const int64_t count = last_k - k < kTile ? last_k - k : kTile;
      for (int i = 0; i < kLanes; ++i) expand<V>(w, first + kLanes * q + i, k, k + count, tile[i]);
      char* const out = panel + (k - first_k) * stride + q * sizeof(VectorU);
      transpose_tile(count, out, stride, [&](int i, int64_t j) __attribute__((always_inline)) {
        return load_unaligned<VectorU>(tile[i] + j);
      });
    }
  }
}

void decode(const NMWeight& w, int64_t first, int pairs, int64_t first_k, int64_t last_k, void* panel) {
  char* const out = static_cast<char*>(panel);
  with_type(w.type, [&](auto typed) {
    using V = typename decltype(typed)::Value;
    if constexpr (__is_same(V, float) || __is_same(V, Fp16)) {
      decode_wide<V>(w, first, pairs, first_k, last_k, out);
    } else {
      decode_narrow<V>(w, first, pairs, first_k, last_k, out);
    }
  });
}

void row_float(const NMWeight& w, int64_t output, float* row) {
  with_type(w.type, [&](auto typed) { expand<typename decltype(typed)::Value>(w, output, 0, w.k(), row); });
}

void row_bits(const NMWeight& w, int64_t output, uint16_t* row) {
  with_type(w.type, [&](auto typed) {
    using V = typename decltype(typed)::Value;
    if constexpr (__is_same(V, Bf16) || __is_same(V, Fp16)) expand<V>(w, output, 0, w.k(), row);
  });
}

}  // namespace

extern const NMPanelKernel SNN_CONCAT(nm_panel_, SNN_ISA) = {kLanes, {kNarrowPairs, kWidePairs}, decode, row_float,
                                                        row_bits};

}  // namespace snn_core
