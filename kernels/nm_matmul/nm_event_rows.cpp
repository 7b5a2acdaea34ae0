// Bodies of NMEventKernel: lists of spikes, sums of weight rows, scale and bias.

#include "native/vectors.h"
#include "nm_matmul/nm_panel_layout.h"
#include "nm_matmul/nm_panels.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

SNN_VECTOR_INLINE uint64_t some_bytes(const uint8_t* bytes, int64_t count) {
  uint64_t word = 0;
  for (int64_t i = 0; i < count; ++i) word |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  return word;
}

// Appends base + the positions of the bits of `word`.
SNN_VECTOR_INLINE uint16_t* append(uint64_t word, uint16_t base, uint16_t* out) {
#if defined(__AVX512VBMI2__)
  // Without a loop over the spikes, whose number the processor could not guess.
  const __m512i low = _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12,
                                       11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i from = _mm512_add_epi16(low, _mm512_set1_epi16(static_cast<short>(base)));
  const auto first = static_cast<uint32_t>(word), second = static_cast<uint32_t>(word >> 32);
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi16(first, from));
  out += __builtin_popcount(first);
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi16(second, _mm512_add_epi16(from, _mm512_set1_epi16(32))));
  return out + __builtin_popcount(second);
#else
  for (; word != 0; word &= word - 1) *out++ = static_cast<uint16_t>(base + __builtin_ctzll(word));
  return out;
#endif
}

int64_t list(const uint8_t* row, const NMPiece* pieces, int64_t count, uint16_t* spikes) {
  uint16_t* out = spikes;
  for (int64_t p = 0; p < count; ++p) {
    const uint8_t* const bytes = row + pieces[p].byte;
    const int64_t n = pieces[p].bytes;
    auto base = static_cast<uint16_t>(pieces[p].k);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8, base += 64) out = append(load_unaligned<uint64_t>(bytes + i), base, out);
    if (i < n) out = append(some_bytes(bytes + i, n - i), base, out);
  }
  return out - spikes;
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

template <int kVectors>
SNN_VECTOR_INLINE void prefetch_row(const float* y) {
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) __builtin_prefetch(y + i * kLanes, 1);
}

template <bool kWide, int kPairs>
void run_pairs(const NMEventRows& r) {
  constexpr int64_t row_bytes = (kWide ? 2 : 1) * kPairs * sizeof(VectorU);
  const char* const panel = static_cast<const char*>(r.panel);
  for (int64_t row = 0; row < r.rows; ++row) {
    const uint32_t* const range = r.offset + row;
    const uint16_t* const last = r.spikes + range[1];
    float* const y = r.y + row * r.ldy;
    VectorF sum[2 * kPairs];
#pragma GCC unroll 8
    for (int q = 0; q < 2 * kPairs; ++q) sum[q] = r.accumulate ? load<VectorF>(y + q * kLanes) : VectorF{};
    // The processor is too busy with a row to ask in time for the sums of the next one.
    if (r.accumulate && row + 1 < r.rows) prefetch_row<2 * kPairs>(y + r.ldy);
    const uint16_t* k = r.spikes + range[0];
#if defined(__AVX512BF16__)
    if constexpr (!kWide) {
      for (; last - k >= 2; k += 2) add_two_rows<kPairs>(panel + k[0] * row_bytes, panel + k[1] * row_bytes, sum);
    }
#endif
    for (; k != last; ++k) add_row<kWide, kPairs>(panel + *k * row_bytes, sum);
#pragma GCC unroll 8
    for (int q = 0; q < 2 * kPairs; ++q) store<false>(y + q * kLanes, sum[q]);
  }
}

template <bool kWide>
void run(const NMEventRows& r) {
  switch (r.pairs) {
    case 1: return run_pairs<kWide, 1>(r);
    case 2: return run_pairs<kWide, 2>(r);
    case 3: return run_pairs<kWide, 3>(r);
    default: return run_pairs<kWide, 4>(r);
  }
}

void finish(float* y, int64_t ldy, int64_t rows, int64_t n, const float* scale, const float* bias) {
  for (int64_t r = 0; r < rows; ++r, y += ldy) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      VectorF value = load<VectorF>(y + i);
      if (scale != nullptr) value = value * load<VectorF>(scale + i);
      if (bias != nullptr) value = value + load<VectorF>(bias + i);
      store<false>(y + i, value);
    }
    for (; i < n; ++i) {
      if (scale != nullptr) y[i] *= scale[i];
      if (bias != nullptr) y[i] += bias[i];
    }
  }
}

}  // namespace

extern const NMEventKernel SNN_CONCAT(nm_event_, SNN_ISA) = {list, {run<false>, run<true>}, finish};

}  // namespace snn_core
