// Spans of 64 weights written out quickly, where the instruction set helps. For per-instruction-set sources.
#pragma once

#include "nm_matmul/nm_values.h"

namespace snn_core {
namespace {

constexpr int kSpan = 64;

// Bits first .. first + 64 of the stream; all of them exist.
SNN_VECTOR_INLINE uint64_t stream_word(const uint8_t* stream, int64_t first) {
  const int64_t byte = first / 8;
  const int shift = static_cast<int>(first % 8);
  const uint64_t word = load_unaligned<uint64_t>(stream + byte);
  return shift == 0 ? word : word >> shift | static_cast<uint64_t>(stream[byte + 8]) << (64 - shift);
}

#if defined(__AVX512VBMI2__)

// Whether the blocks of a span and their values can be taken by expand_span.
SNN_VECTOR_INLINE bool expands_spans(const NMWeight& w) { return w.indices == nullptr || kSpan % w.m == 0; }

// The entries of a table for 16 nibbles, as nibbles.
SNN_VECTOR_INLINE uint64_t look_up_nibbles(__m128i table, uint64_t nibbles) {
  const __m128i codes = _mm_cvtsi64_si128(static_cast<int64_t>(nibbles)), nibble = _mm_set1_epi8(15);
  const __m128i low = _mm_shuffle_epi8(table, _mm_and_si128(codes, nibble));
  const __m128i high = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi64(codes, 4), nibble));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_or_si128(low, _mm_slli_epi64(high, 4))));
}

// Kept inputs of eight blocks of 8 (codes of 3 bits) or four of 16 (4 bits), with up to 2 and 3 values each.
SNN_VECTOR_INLINE uint64_t kept_of_eight(uint64_t codes, int n) {
  const __m128i table = _mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0);
  uint64_t first = codes, second = codes;
  if (n == 2) {
    constexpr uint64_t evens = 0x1c71c71c71c7ull;  // 3 of 6 bits
    first = _pext_u64(codes, evens);
    second = _pext_u64(codes, evens << 3);
  }
  const __m128i spread = _mm_set_epi64x(static_cast<int64_t>(_pdep_u64(second, 0x0707070707070707ull)),
                                        static_cast<int64_t>(_pdep_u64(first, 0x0707070707070707ull)));
  const __m128i bits = _mm_shuffle_epi8(table, spread);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(bits)) | static_cast<uint64_t>(_mm_extract_epi64(bits, 1));
}
SNN_VECTOR_INLINE uint64_t kept_of_sixteen(uint64_t codes, int n) {
  uint64_t kept = 0;
  for (int block = 0; block < 64; block += 16) {
    for (int i = 0; i < n; ++i, codes >>= 4) kept |= uint64_t{1} << (block + (codes & 15));
  }
  return kept;
}

// Which of 64 inputs from value `first` on are kept.
SNN_VECTOR_INLINE uint64_t kept_bits(const NMWeight& w, int64_t first) {
  if (w.m == 4 && w.n == 2) {
    // Each nibble holds two positions; the table gives their bits.
    const __m128i table = _mm_setr_epi8(1, 3, 5, 9, 3, 2, 6, 10, 5, 6, 4, 12, 9, 10, 12, 8);
    return look_up_nibbles(table, stream_word(w.indices, 2 * first));
  }
  if (w.m == 4 && w.n == 1) {
    const __m128i table = _mm_setr_epi8(1, 2, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    return look_up_nibbles(table, _pdep_u64(stream_bits(w, 2 * first), 0x3333333333333333ull));
  }
  if (w.m == 8 && w.n <= 2) return kept_of_eight(stream_bits(w, 3 * first), w.n);
  if (w.m == 16 && w.n <= 3) return kept_of_sixteen(stream_bits(w, 4 * first), w.n);
  const int bits = index_bits(w.m);
  const uint64_t mask = (1u << bits) - 1;
  uint64_t kept = 0;
  int64_t bit = first * bits;
  for (int block = 0; block < kSpan; block += w.m) {
    for (int i = 0; i < w.n; i += 8) {  // 8 positions of at most 6 bits at once
      uint64_t codes = stream_bits(w, bit);
      const int count = w.n - i < 8 ? w.n - i : 8;
      for (int j = 0; j < count; ++j, codes >>= bits) kept |= uint64_t{1} << ((block + (codes & mask)) & 63);
      bit += count * bits;
    }
  }
  return kept;
}

// `count` <= 32 values as 16 bits each: see put(). kFew: at most 16. A wider load would wait for the next line of
// memory, although it takes nothing from it.
template <bool kFew>
SNN_VECTOR_INLINE __m512i raw_16(const void* p, __mmask32 count) {
  if constexpr (kFew) return _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(count), p));
  return _mm512_maskz_loadu_epi16(count, p);
}
template <bool kFew>
SNN_VECTOR_INLINE __m512i values_16(const Bf16* p, __mmask32 count) {
  return raw_16<kFew>(p, count);
}
template <bool kFew>
SNN_VECTOR_INLINE __m512i values_16(const Fp16* p, __mmask32 count) {
  return raw_16<kFew>(p, count);
}
template <bool kFew>
SNN_VECTOR_INLINE __m512i values_16(const Int8* p, __mmask32 count) {
  const __m256i bytes = _mm256_maskz_loadu_epi8(count, p);
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
  const __m256i low_half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(low), 16));
  const __m256i high_half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(high), 16));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low_half), high_half, 1);
}
template <bool kFew>
SNN_VECTOR_INLINE __m512i values_16(const Float8* p, __mmask32 count) {
  const __m512i x = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(count, p));
  const __m512i magnitude = _mm512_and_si512(x, _mm512_set1_epi16(0x7f));
  const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  // Multiples of 2^-9 below 8 of them, as bfloat16.
  const __m512i tiny = _mm512_castsi128_si512(_mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  __m512i value = _mm512_mask_permutexvar_epi16(normal, _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8)),
                                                magnitude, tiny);
  const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
  value = _mm512_mask_mov_epi16(value, nan, _mm512_set1_epi16(0x7fc0));
  return _mm512_or_si512(value, _mm512_slli_epi16(_mm512_and_si512(x, _mm512_set1_epi16(0x80)), 8));
}

// The first `count` of 32 lanes.
SNN_VECTOR_INLINE __mmask32 first_lanes(int count) { return static_cast<__mmask32>(_bzhi_u64(~uint64_t{0}, count)); }

// 32 weights as 16 bits each.
template <bool kFew, class V>
SNN_VECTOR_INLINE __m512i expand_half(const V* values, uint32_t kept) {
  return _mm512_maskz_expand_epi16(kept, values_16<kFew>(values, first_lanes(__builtin_popcount(kept))));
}

SNN_VECTOR_INLINE void store_half_span(uint16_t* out, __m512i x) { _mm512_storeu_si512(out, x); }
SNN_VECTOR_INLINE void store_half_span(float* out, __m512i half) {  // float16
  _mm512_storeu_ps(out, _mm512_cvtph_ps(_mm512_castsi512_si256(half)));
  _mm512_storeu_ps(out + 16, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1)));
}

// 64 inputs of a row whose first value is `first`.
template <class V, class Element>
SNN_VECTOR_INLINE void expand_span(const NMWeight& w, int64_t first, Element* out) {
  const uint64_t kept = w.indices == nullptr ? ~uint64_t{0} : kept_bits(w, first);
  const V* values = static_cast<const V*>(w.values) + first;
  if constexpr (__is_same(V, float)) {
#pragma GCC unroll 4
    for (int i = 0; i < kSpan; i += 16) {
      const auto here = static_cast<__mmask16>(kept >> i);
      const int count = __builtin_popcount(here);
      const __m512 some = _mm512_maskz_loadu_ps(static_cast<__mmask16>(first_lanes(count)), values);
      _mm512_storeu_ps(out + i, _mm512_maskz_expand_ps(here, some));
      values += count;
    }
  } else if constexpr (__is_same(Element, float) && !__is_same(V, Fp16)) {
    for (int i = 0; i < kSpan; ++i) out[i] = 0.0f;
    for (uint64_t rest = kept; rest != 0; rest &= rest - 1) out[__builtin_ctzll(rest)] = value_of(values++);
  } else {
    const auto low = static_cast<uint32_t>(kept), high = static_cast<uint32_t>(kept >> 32);
    const V* const rest = values + __builtin_popcount(low);
    if (w.indices != nullptr && 2 * w.n <= w.m && w.m <= 32) {
      store_half_span(out, expand_half<true>(values, low));
      store_half_span(out + 32, expand_half<true>(rest, high));
    } else {
      store_half_span(out, expand_half<false>(values, low));
      store_half_span(out + 32, expand_half<false>(rest, high));
    }
  }
}

#elif defined(__SSSE3__)

SNN_VECTOR_INLINE bool expands_spans(const NMWeight& w) { return w.n == 2 && w.m == 4 && kNMTypeBytes[w.type] == 2; }

// How the bytes of four 16-bit values move to eight places, by the byte of their positions.
struct MoveTable {
  alignas(16) uint8_t move[256][16];
  constexpr MoveTable() : move() {
    for (int code = 0; code < 256; ++code) {
      for (int i = 0; i < 16; ++i) move[code][i] = 0x80;
      for (int q = 0; q < 4; ++q) {
        const int place = q / 2 * 4 + (code >> 2 * q & 3);
        move[code][2 * place] = static_cast<uint8_t>(2 * q);
        move[code][2 * place + 1] = static_cast<uint8_t>(2 * q + 1);
      }
    }
  }
};
constexpr MoveTable kMoves;

template <class V, class Element>
SNN_VECTOR_INLINE void expand_span(const NMWeight& w, int64_t first, Element* out) {
  const V* const values = static_cast<const V*>(w.values) + first;
  uint64_t codes = stream_word(w.indices, 2 * first);
  for (int i = 0; i < kSpan; i += 8, codes >>= 8) {
    const __m128i some = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values + i / 2));
    const __m128i moves = _mm_load_si128(reinterpret_cast<const __m128i*>(kMoves.move[codes & 255]));
    const __m128i spread = _mm_shuffle_epi8(some, moves);
    if constexpr (sizeof(Element) == 2) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), spread);
    } else if constexpr (sizeof(V) == 2) {
      alignas(16) V eight[8];
      _mm_store_si128(reinterpret_cast<__m128i*>(eight), spread);
      for (int j = 0; j < 8; ++j) out[i + j] = value_of(eight + j);
    }
  }
}

#else

SNN_VECTOR_INLINE bool expands_spans(const NMWeight&) { return false; }
template <class V, class Element>
SNN_VECTOR_INLINE void expand_span(const NMWeight&, int64_t, Element*) {}

#endif

// Inputs first <= k < last of a row, zeros for a row past the last output. `first` is a multiple of 64.
template <class V, class Element>
SNN_VECTOR_INLINE void expand(const NMWeight& w, int64_t output, int64_t first, int64_t last, Element* out) {
  if (output >= w.outputs) {
    __builtin_memset(out, 0, (last - first) * sizeof(Element));
    return;
  }
  int64_t k = first;
  if (expands_spans(w)) {
    const bool dense = w.indices == nullptr;
    const int64_t span = dense ? kSpan : kSpan / w.m * w.n;
    int64_t value = dense ? output * w.k() + first : (output * w.k() + first) / w.m * w.n;
    const int64_t ahead = (last - first) / kSpan * span;
    for (; k + kSpan <= last; k += kSpan, value += span) {
      // The same columns of 32 rows are read in turn, too far apart for the processor to foresee what comes next.
      __builtin_prefetch(static_cast<const V*>(w.values) + value + ahead, 0, 2);
      expand_span<V>(w, value, out + (k - first));
    }
  }
  if (k < last) expand_any<V>(w, output, k, last, out + (k - first));
}

}  // namespace
}  // namespace snn_core
