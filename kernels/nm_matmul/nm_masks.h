// Positions of kept weights a vector at a time, and which of the weights along k are kept as one bit each: what the
// few-row kernels compress spikes with and expand values by. Per-instruction-set sources alone.
#pragma once

#include "nm_matmul/nm_decode.h"

#if defined(__AVX512VBMI__)

namespace snn_core {
namespace {

// Reads 64 positions at once: the bytes of eight of them to every quadword, then eight bits from each of their places.
class PositionVectors {
 public:
  PositionVectors(const NMWeight& w, int64_t first_bit)
      : indices_(w.indices), end_(w.index_bytes), first_byte_(first_bit / 8), bits_(index_bits(w)) {
    alignas(64) uint8_t gather[64], shift[64];
    for (int j = 0; j < 64; ++j) {
      const int byte = j / 8 * bits_ + j % 8;
      gather[j] = static_cast<uint8_t>(byte < 64 ? byte : 63);
      shift[j] = static_cast<uint8_t>(first_bit % 8 + j % 8 * bits_);
    }
    gather_ = _mm512_load_si512(gather);
    shift_ = _mm512_load_si512(shift);
    field_ = _mm512_set1_epi8(static_cast<char>((1 << bits_) - 1));
  }

  // Positions `i` (a multiple of 64) to i + 63, one a byte; past the end of the indices 0.
  SNN_VECTOR_INLINE __m512i read(int64_t i) const {
    const int64_t byte = first_byte_ + i / 8 * bits_, left = end_ - byte;
    const __mmask64 there = left >= 64 ? ~uint64_t{0} : left > 0 ? (uint64_t{1} << left) - 1 : 0;
    const __m512i source = _mm512_permutexvar_epi8(gather_, _mm512_maskz_loadu_epi8(there, indices_ + byte));
    return _mm512_and_si512(field_, _mm512_multishift_epi64_epi8(shift_, source));
  }

 private:
  const uint8_t* indices_;
  int64_t end_, first_byte_;
  int bits_;
  __m512i gather_, shift_, field_;
};

constexpr int64_t kMaskChunk = 2048;  // weights along k whose bits are made at once

// Weights that can be walked in such chunks.
inline bool fits_mask_chunks(const NMWeight& w) { return kMaskChunk % w.m == 0 || w.k() <= kMaskChunk; }

// Bits of nibbles of indices: of two of 2:4, of 1:4, of four of 1:2.
struct NibbleMasks {
  uint8_t two_of_four[16] = {}, one_of_four[16] = {}, one_of_two[16] = {};
  constexpr NibbleMasks() {
    for (int code = 0; code < 16; ++code) {
      two_of_four[code] = static_cast<uint8_t>(1 << (code & 3) | 1 << (code >> 2));
      one_of_four[code] = static_cast<uint8_t>(1 << (code & 3) | 16 << (code >> 2));
      for (int q = 0; q < 4; ++q) one_of_two[code] |= static_cast<uint8_t>(1 << (2 * q + (code >> q & 1)));
    }
  }
};
constexpr NibbleMasks kNibbleMasks;

struct alignas(64) KeptMasks {
  uint64_t word[kMaskChunk / 64];

  // The bits of `count` weights whose indices start at `bit`; zeros up to a multiple of 64.
  inline void read(const NMWeight& w, int64_t bit, int64_t count) {
    auto* const bytes = reinterpret_cast<uint8_t*>(word);
    const int64_t byte_count = (count + 7) / 8;
    if (bit % 8 == 0 && w.n == 2 && w.m == 4) {
      for (int64_t i = 0; i < byte_count; i += 64) read_half_bytes(w, bit / 8 + i, bytes + i);
    } else if (bit % 8 == 0 && w.n == 1 && (w.m == 4 || w.m == 2)) {
      const uint8_t* const table = w.m == 4 ? kNibbleMasks.one_of_four : kNibbleMasks.one_of_two;
      for (int64_t i = 0; i < byte_count; i += 128) read_bytes(w, bit / 8 + i / 2, table, bytes + i);
    } else if (w.m == 8 && (w.n == 1 || w.n == 2 || w.n == 4)) {
      read_eights(w, bit, byte_count, bytes);
    } else {
      read_any(w, bit, count);
    }
    if (count % 64 != 0) word[count / 64] &= (uint64_t{1} << count % 64) - 1;
  }

 private:
  static SNN_VECTOR_INLINE __m512i index_vector(const NMWeight& w, int64_t byte) {
    const int64_t left = w.index_bytes - byte;
    const __mmask64 there = left >= 64 ? ~uint64_t{0} : left > 0 ? (uint64_t{1} << left) - 1 : 0;
    return _mm512_maskz_loadu_epi8(there, w.indices + byte);
  }
  static SNN_VECTOR_INLINE __m512i table_vector(const uint8_t* table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }

  // A byte of indices is for a byte of bits.
  static SNN_VECTOR_INLINE void read_half_bytes(const NMWeight& w, int64_t byte, uint8_t* out) {
    const __m512i indices = index_vector(w, byte), nibble = _mm512_set1_epi8(15),
                  table = table_vector(kNibbleMasks.two_of_four);
    const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(indices, nibble));
    const __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(indices, 4), nibble));
    _mm512_store_si512(out, _mm512_or_si512(low, _mm512_slli_epi16(high, 4)));
  }

  // A byte of indices is for two bytes of bits.
  static SNN_VECTOR_INLINE void read_bytes(const NMWeight& w, int64_t byte, const uint8_t* masks, uint8_t* out) {
    const __m512i nibble = _mm512_set1_epi8(15), table = table_vector(masks), indices = index_vector(w, byte);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i wide = _mm512_cvtepu8_epi16(half ? _mm512_extracti64x4_epi64(indices, 1)
                                                     : _mm512_castsi512_si256(indices));
      const __m512i split = _mm512_or_si512(wide, _mm512_slli_epi16(wide, 4));
      _mm512_store_si512(out + 64 * half, _mm512_shuffle_epi8(table, _mm512_and_si512(split, nibble)));
    }
  }

  static inline void read_eights(const NMWeight& w, int64_t bit, int64_t byte_count, uint8_t* out) {
    const PositionVectors positions(w, bit);
    const __m512i powers = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201u));
    for (int64_t i = 0; i < byte_count; i += 64 / w.n) {
      __m512i ones = _mm512_shuffle_epi8(powers, positions.read(i * w.n));
      if (w.n > 1) ones = _mm512_or_si512(ones, _mm512_srli_epi16(ones, 8));
      if (w.n > 2) ones = _mm512_or_si512(ones, _mm512_srli_epi32(ones, 16));
      if (w.n == 1) _mm512_store_si512(out + i, ones);
      if (w.n == 2) _mm256_store_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtepi16_epi8(ones));
      if (w.n == 4) _mm_store_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtepi32_epi8(ones));
    }
  }

  inline void read_any(const NMWeight& w, int64_t bit, int64_t count) {
    __builtin_memset(word, 0, sizeof(word));
    const PositionVectors positions(w, bit);
    const int64_t kept = count / w.m * w.n;
    int64_t block = 0;
    int in_block = 0;
    for (int64_t i = 0; i < kept; i += 64) {
      alignas(64) uint8_t position[64];
      _mm512_store_si512(position, positions.read(i));
      for (int64_t j = 0; j < 64 && i + j < kept; ++j) {
        const int64_t k = block + position[j];
        if (k < count) word[k / 64] |= uint64_t{1} << k % 64;  // whatever the indices say
        if (++in_block == w.n) in_block = 0, block += w.m;
      }
    }
  }
};

// The sums of the lanes of eight vectors.
SNN_VECTOR_INLINE __m256 lane_sums(const __m512 (&v)[8]) {
  __m256 h[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) h[i] = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) h[i] = _mm256_hadd_ps(h[i], h[i + 1]);
  const __m256 low = _mm256_hadd_ps(h[0], h[2]), high = _mm256_hadd_ps(h[4], h[6]);
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

}  // namespace
}  // namespace snn_core

#endif
