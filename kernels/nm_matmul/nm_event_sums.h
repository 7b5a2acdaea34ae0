// Lists of spikes, and sums of the rows of a panel that they name. Per-instruction-set sources alone, as
// native/vectors.h.
#pragma once

#include "native/vectors.h"
#include "nm_matmul/nm_panel_layout.h"

namespace snn_core {
namespace {

SNN_VECTOR_INLINE uint64_t some_bytes(const uint8_t* bytes, int64_t count) {
  if (count >= 4) {  // two halves, which may overlap
    const uint64_t low = load_unaligned<uint32_t>(bytes), high = load_unaligned<uint32_t>(bytes + count - 4);
    return low | high << (8 * (count - 4));
  }
  uint64_t word = 0;
  for (int64_t i = 0; i < count; ++i) word |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  return word;
}

// Appends base + the positions of the bits of `word`.
#if defined(__AVX512VBMI2__)
// Without a loop over the spikes, whose number the processor could not guess.
SNN_VECTOR_INLINE uint16_t* append(uint64_t word, uint16_t base, uint16_t* out) {
  alignas(64) static constexpr uint8_t kPositions[64] = {
      0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
      22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
      44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i from = _mm512_set1_epi16(static_cast<short>(base));
  const __m512i there = _mm512_maskz_compress_epi8(word, _mm512_load_si512(kPositions));
  const int count = __builtin_popcountll(word);
  _mm512_storeu_si512(out, _mm512_add_epi16(from, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(there))));
  if (count > 32) {
    _mm512_storeu_si512(out + 32, _mm512_add_epi16(from, _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(there, 1))));
  }
  return out + count;
}
#else
SNN_VECTOR_INLINE uint16_t* append(uint64_t word, uint16_t base, uint16_t* out) {
  for (; word != 0; word &= word - 1) *out++ = static_cast<uint16_t>(base + __builtin_ctzll(word));
  return out;
}
#endif

// The same for a run of bytes.
SNN_VECTOR_INLINE uint16_t* append_bytes(const uint8_t* bytes, int64_t count, uint16_t base, uint16_t* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8, base += 64) out = append(load_unaligned<uint64_t>(bytes + i), base, out);
  return i < count ? append(some_bytes(bytes + i, count - i), base, out) : out;
}

// Appends `count` positions, each moved by `shift`. Reads and writes up to 2 * kLanes further ones.
typedef uint16_t VectorS __attribute__((vector_size(4 * kLanes)));
SNN_VECTOR_INLINE uint16_t* append_moved(const uint16_t* from, int64_t count, uint16_t shift, uint16_t* out) {
  const VectorS by = VectorS{} + shift;
  int64_t i = 0;
  do {  // few spikes: no branch that depends on whether there are any
    store_unaligned(out + i, load_unaligned<VectorS>(from + i) + by);
    i += 2 * kLanes;
  } while (i < count);
  return out + count;
}

// Adds the row of a panel at `w` to the sums.
template <bool kWide, int kPairs>
SNN_VECTOR_INLINE void add_row(const char* w, VectorF (&sum)[2 * kPairs]) {
#pragma GCC unroll 8
  for (int q = 0; q < (kWide ? 2 * kPairs : kPairs); ++q) {
    const VectorU x = load_unaligned<VectorU>(w + q * sizeof(VectorU));
    if constexpr (kWide) {
      sum[q] += (VectorF)x;
#if defined(__AVX512BF16__)
    } else if constexpr (kAddsPairs) {
      const __m512i none = _mm512_setzero_si512();
      sum[2 * q] += (VectorF)_mm512_unpacklo_epi16(none, (__m512i)x);
      sum[2 * q + 1] += (VectorF)_mm512_unpackhi_epi16(none, (__m512i)x);
#endif
    } else {
      sum[2 * q] += (VectorF)(x << 16);
      sum[2 * q + 1] += (VectorF)(x & 0xffff0000u);
    }
  }
}

#if defined(__AVX512BF16__)
// Adds the rows at `first` and `second`, in this order: a dot product adds what is in the high half before what is in
// the low one, rounding in between, so that sums have the bits of one addition after the other (but for subnormals).
template <int kPairs>
SNN_VECTOR_INLINE void add_two_rows(const char* first, const char* second, VectorF (&sum)[2 * kPairs]) {
  const auto ones = (__m512bh)_mm512_set1_epi16(0x3f80);
#pragma GCC unroll 8
  for (int q = 0; q < kPairs; ++q) {
    const auto a = (__m512i)load_unaligned<VectorU>(first + q * sizeof(VectorU)),
               b = (__m512i)load_unaligned<VectorU>(second + q * sizeof(VectorU));
    sum[2 * q] = (VectorF)_mm512_dpbf16_ps((__m512)sum[2 * q], (__m512bh)_mm512_unpacklo_epi16(b, a), ones);
    sum[2 * q + 1] = (VectorF)_mm512_dpbf16_ps((__m512)sum[2 * q + 1], (__m512bh)_mm512_unpackhi_epi16(b, a), ones);
  }
}
#endif

// Adds the rows of the spikes k .. last, one after the other.
template <bool kWide, int kPairs>
SNN_VECTOR_INLINE void add_rows(const char* panel, const uint16_t* k, const uint16_t* last,
                                VectorF (&sum)[2 * kPairs]) {
  constexpr int64_t row_bytes = (kWide ? 2 : 1) * kPairs * sizeof(VectorU);
#if defined(__AVX512BF16__)
  if constexpr (!kWide) {
    for (; last - k >= 2; k += 2) add_two_rows<kPairs>(panel + k[0] * row_bytes, panel + k[1] * row_bytes, sum);
  }
#endif
  for (; k != last; ++k) add_row<kWide, kPairs>(panel + *k * row_bytes, sum);
}

}  // namespace
}  // namespace snn_core
