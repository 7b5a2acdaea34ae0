// AVX-512: sums of 16 outputs x 64 rows in a tile, tables of four weights, and the way of a tile to the result.
#pragma once

#include "nm_matmul/nm_decode.h"

#if defined(__AVX512BW__)

namespace snn_core {
namespace {

constexpr int kGroup = 16;                        // rows of a vector
constexpr int kGroups = kNMBlockRows / kGroup;    // vectors of a block

struct alignas(64) SumTile {
  float sum[kNMOutputStep][kNMBlockRows];  // [output][row]
};

// The sums of all subsets of four weights: lane i holds the sum over the bits that are set in i.
template <class Value>
struct SubsetSums {
  SNN_VECTOR_INLINE __m512 operator()(const float* w) const {
    // Multiplied by 1, which changes no bit: see add_picked.
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 t = _mm512_maskz_mov_ps(0xAAAA, _mm512_set1_ps(w[0]));
    t = _mm512_mask3_fmadd_ps(one, _mm512_set1_ps(w[1]), t, 0xCCCC);
    t = _mm512_mask3_fmadd_ps(one, _mm512_set1_ps(w[2]), t, 0xF0F0);
    return _mm512_mask3_fmadd_ps(one, _mm512_set1_ps(w[3]), t, 0xFF00);
  }
};

#if defined(__AVX512BF16__)
// The same from four bfloat16 values by two dot products with ones and zeros; the values must be finite.
template <>
struct SubsetSums<uint16_t> {
  __m512bh low, high;
  SNN_VECTOR_INLINE SubsetSums() {
    const __m512i first = _mm512_set1_epi32(0x3f80), second = _mm512_set1_epi32(0x3f800000);
    low = (__m512bh)_mm512_or_si512(_mm512_maskz_mov_epi32(0xAAAA, first), _mm512_maskz_mov_epi32(0xCCCC, second));
    high = (__m512bh)_mm512_or_si512(_mm512_maskz_mov_epi32(0xF0F0, first), _mm512_maskz_mov_epi32(0xFF00, second));
  }
  SNN_VECTOR_INLINE __m512 operator()(const uint16_t* w) const {
    const __m512i pair0 = _mm512_set1_epi32(load_unaligned<int32_t>(w));
    const __m512i pair1 = _mm512_set1_epi32(load_unaligned<int32_t>(w + 2));
    return _mm512_dpbf16_ps(_mm512_dpbf16_ps(_mm512_setzero_ps(), low, (__m512bh)pair0), high, (__m512bh)pair1);
  }
};
#endif

// Adds the sums that the low four bits of each byte of `index` pick: byte g of a lane is for rows 16 g + lane.
// Additions and shifts share two of Zen 4's four ports, and are more than the rest: of three or four additions one is a
// product with 1 and an addition, which has the same bits on the ports of the dot products.
template <int kCount>
SNN_VECTOR_INLINE void add_picked(__m512i index, __m512 table, __m512 (&sum)[kCount]) {
#pragma GCC unroll 4
  for (int g = 0; g < kCount; ++g) {
    const __m512 picked = _mm512_permutexvar_ps(g ? _mm512_srli_epi32(index, 8 * g) : index, table);
    sum[g] = g == 0 && kCount > 2 ? _mm512_fmadd_ps(picked, _mm512_set1_ps(1.0f), sum[g])
                                  : _mm512_add_ps(sum[g], picked);
  }
}

inline bool all_finite(const uint16_t* p, int64_t count) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  __mmask32 bad = 0;
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    bad |= _mm512_cmpeq_epi16_mask(_mm512_and_si512(_mm512_loadu_si512(p + i), exponent), exponent);
  }
  for (; i < count; ++i) bad |= (p[i] & 0x7f80) == 0x7f80;
  return bad == 0;
}

SNN_VECTOR_INLINE void transpose_16x16(__m512 (&r)[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xDD);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// Bytes of a where the mask has ones, of b elsewhere.
SNN_VECTOR_INLINE __m512i select_bytes(__m512i a, __m512i b, uint32_t mask) {
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int32_t>(mask)), a, b, 0xCA);
}

// Spike bytes of up to 64 rows to lines of one byte of every row: byte 4 i + g of a line is of row 16 g + i, so that
// the g-th byte of a lane is for the g-th vector of rows. `count` bytes, at most 64; missing rows are 0.
inline void spike_lines(const uint8_t* bits, int64_t stride, int rows, int count, uint8_t* lines) {
  const __mmask64 there = count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
  alignas(64) __m512i words[kGroups][16];
  for (int g = 0; g < kGroups; ++g) {
    __m512 r[16];
    for (int i = 0; i < 16; ++i) {
      const int row = g * kGroup + i;
      r[i] = row < rows ? (__m512)_mm512_maskz_loadu_epi8(there, bits + row * stride) : _mm512_setzero_ps();
    }
    transpose_16x16(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) words[g][i] = (__m512i)r[i];
  }
  for (int d = 0; 4 * d < count; ++d) {
    const __m512i a = words[0][d], b = words[1][d], c = words[2][d], e = words[3][d];
    // Bytes 0 and 2, then 1 and 3, of pairs of groups; then of all four.
    const __m512i ab0 = select_bytes(a, _mm512_slli_epi32(b, 8), 0x00ff00ff),
                  ab1 = select_bytes(_mm512_srli_epi32(a, 8), b, 0x00ff00ff),
                  ce0 = select_bytes(c, _mm512_slli_epi32(e, 8), 0x00ff00ff),
                  ce1 = select_bytes(_mm512_srli_epi32(c, 8), e, 0x00ff00ff);
    const __m512i line[4] = {select_bytes(ab0, _mm512_slli_epi32(ce0, 16), 0x0000ffff),
                             select_bytes(ab1, _mm512_slli_epi32(ce1, 16), 0x0000ffff),
                             select_bytes(_mm512_srli_epi32(ab0, 16), ce0, 0x0000ffff),
                             select_bytes(_mm512_srli_epi32(ab1, 16), ce1, 0x0000ffff)};
    for (int j = 0; j < 4 && 4 * d + j < count; ++j) _mm512_store_si512(lines + (4 * d + j) * kNMBlockRows, line[j]);
  }
}

// y[row * ldy + output] of `outputs` outputs.
inline void store_tile(const SumTile& tile, int rows, int outputs, float* y, int64_t ldy) {
  const __mmask16 columns = static_cast<__mmask16>((1u << outputs) - 1u);
  for (int g = 0; g * kGroup < rows; ++g) {
    __m512 r[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) r[j] = _mm512_load_ps(tile.sum[j] + g * kGroup);
    transpose_16x16(r);
    const int here = rows - g * kGroup < kGroup ? rows - g * kGroup : kGroup;
    alignas(64) float lines[16][16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_store_ps(lines[i], r[i]);
    for (int i = 0; i < here; ++i) {
      _mm512_mask_storeu_ps(y + (g * kGroup + i) * ldy, columns, _mm512_load_ps(lines[i]));
    }
  }
}

}  // namespace
}  // namespace snn_core

#endif
