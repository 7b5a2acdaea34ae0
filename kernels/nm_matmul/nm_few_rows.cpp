// Few rows of packed spikes: what counts is that the weight is read once, in its compressed form. The spike bits of a
// row are compressed by the bits of the kept weights (pext), which gives them the order of the values, and whole vectors
// of values are added under them.

#include "nm_matmul/nm_masks.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

#if defined(__AVX512VBMI__) && defined(__AVX512BF16__) && defined(__BMI2__)

constexpr int kPairs = 8;  // rows x outputs summed at once, to hide the latency of the sums
constexpr int64_t kWords = kMaskChunk / 64;

bool takes(const NMWeight& w) { return w.indices == nullptr || fits_mask_chunks(w); }

// Rows are padded to whole tiles.
int64_t padded_rows(int rows) { return (rows + kPairs - 1) / kPairs * kPairs; }

// Words of 64 spike bits in the order of the weights along k, [word][row]: without gaps between segments, zeros after
// the last weight and the last row.
void prepare(const NMWeight& w, const uint8_t* bits, int64_t stride, int rows, uint8_t* block) {
  const int64_t words = (w.k() + 63) / 64, row_count = padded_rows(rows), segment_bytes = w.segment_bytes();
  auto* const out = reinterpret_cast<uint64_t*>(block);
  __builtin_memset(block, 0, words * row_count * 8);
  for (int r = 0; r < rows; ++r) {
    const uint8_t* const row = bits + r * stride;
    if (w.segment % 8 == 0) {
      const int64_t size = w.row_bytes();
      for (int64_t i = 0; i < size / 8; ++i) out[i * row_count + r] = load_unaligned<uint64_t>(row + 8 * i);
      if (size % 8 != 0) __builtin_memcpy(out + size / 8 * row_count + r, row + size / 8 * 8, size % 8);
      continue;
    }
    for (int64_t s = 0; s < w.segments; ++s) {
      for (int64_t i = 0; i < segment_bytes; ++i) {
        const int64_t left = w.segment - 8 * i, place = s * w.segment + 8 * i;
        const int size = left < 8 ? static_cast<int>(left) : 8;
        const uint64_t byte = row[s * segment_bytes + i] & ((1u << size) - 1u);
        out[place / 64 * row_count + r] |= byte << place % 64;
        if (place % 64 + size > 64) out[(place / 64 + 1) * row_count + r] |= byte >> (64 - place % 64);
      }
    }
  }
}

// Sums of 32 values under 32 bits. The values are loaded once for all rows; `there`: those that exist.
struct Bf16Values {
  using Element = uint16_t;
  __m512i values;
  SNN_VECTOR_INLINE Bf16Values(const uint16_t* p, uint32_t there) : values(_mm512_maskz_loadu_epi16(there, p)) {}
  SNN_VECTOR_INLINE __m512 add(__m512 sum, uint32_t picked) const {
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    return _mm512_dpbf16_ps(sum, (__m512bh)ones, (__m512bh)_mm512_maskz_mov_epi16(picked, values));
  }
};
struct FloatValues {
  using Element = float;
  __m512 low, high;
  SNN_VECTOR_INLINE FloatValues(const float* p, uint32_t there)
      : low(_mm512_maskz_loadu_ps(static_cast<__mmask16>(there), p)),
        high(_mm512_maskz_loadu_ps(static_cast<__mmask16>(there >> 16), p + 16)) {}
  SNN_VECTOR_INLINE FloatValues(__m512 first, __m512 second) : low(first), high(second) {}
  SNN_VECTOR_INLINE __m512 add(__m512 sum, uint32_t picked) const {
    sum = _mm512_mask_add_ps(sum, static_cast<__mmask16>(picked), sum, low);
    return _mm512_mask_add_ps(sum, static_cast<__mmask16>(picked >> 16), sum, high);
  }
};
struct HalfValues : FloatValues {
  using Element = Fp16;
  static SNN_VECTOR_INLINE __m512 widen(const Fp16* p, uint32_t there) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(there), p));
  }
  SNN_VECTOR_INLINE HalfValues(const Fp16* p, uint32_t there)
      : FloatValues(widen(p, there), widen(p + 16, there >> 16)) {}
};

// Chunks of the weights of some outputs.
struct Chunk {
  KeptMasks masks[kPairs];
  const void* values[kPairs];
  int per_word;  // kept weights of 64, or 0 where that differs
  int64_t output_bytes;  // of the values of an output; 0 where they are decoded
  alignas(64) uint16_t decoded[kPairs][kMaskChunk];
};

// Spike bits of a row in the order of the values, 32 a word; `per_word`: kept weights of 64, or 0 where that differs.
SNN_VECTOR_INLINE void compress_row(const uint64_t* x, int64_t x_stride, const uint64_t* masks, int64_t words,
                                    int per_word, uint32_t* out) {
  if (per_word == 16) {
    auto* const target = reinterpret_cast<uint16_t*>(out);
    for (int64_t i = 0; i < words; ++i) target[i] = static_cast<uint16_t>(_pext_u64(x[i * x_stride], masks[i]));
    return;
  }
  if (per_word == 8) {
    auto* const target = reinterpret_cast<uint8_t*>(out);
    for (int64_t i = 0; i < words; ++i) target[i] = static_cast<uint8_t>(_pext_u64(x[i * x_stride], masks[i]));
    return;
  }
  uint64_t held = 0;
  int count = 0;
  for (int64_t i = 0; i < 2 * words; ++i) {
    const auto mask = static_cast<uint32_t>(masks[i / 2] >> i % 2 * 32);
    const uint64_t bits = _pext_u32(static_cast<uint32_t>(x[i / 2 * x_stride] >> i % 2 * 32), mask);
    held |= bits << count;
    count += __builtin_popcount(mask);
    *out = static_cast<uint32_t>(held);
    out += count / 32;
    held = count >= 32 ? held >> 32 : held;
    count %= 32;
  }
  *out = static_cast<uint32_t>(held);
}

template <int kOutputs>
void compress_bits(const uint64_t* x, int64_t x_stride, const Chunk& chunk, int first, int64_t words,
                   uint32_t (&out)[kPairs][2 * kWords + 1]) {
  for (int o = 0; o < kOutputs; ++o) {
    for (int r = 0; r < kPairs / kOutputs; ++r) {
      compress_row(x + r, x_stride, chunk.masks[first + o].word, words, chunk.per_word, out[r * kOutputs + o]);
    }
  }
}

// How the bits of the values come about.
enum BitOrder { kHalf, kAny, kAll };  // every second weight of 64 is kept; any pattern; a dense weight

// Adds a chunk of `count` weights along k to the sums of rows x outputs from `first` of the chunk's; kept: values of an
// output in it.
template <class Values, BitOrder kOrder, int kOutputs>
void add_chunk(const uint64_t* x, int64_t x_stride, const Chunk& chunk, int first, int64_t count, int64_t kept,
               __m512 (&sums)[kPairs]) {
  constexpr int kRows = kPairs / kOutputs;
  using Element = typename Values::Element;
  uint32_t buffer[kOrder == kAny ? kPairs : 1][2 * kWords + 1];
  if constexpr (kOrder == kAny) compress_bits<kOutputs>(x, x_stride, chunk, first, (count + 63) / 64, buffer);
  __m512 sum[kPairs];
#pragma GCC unroll 8
  for (int i = 0; i < kPairs; ++i) sum[i] = sums[i];
  const auto step = [&](int64_t i, uint32_t there) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) {
      const auto* const p = static_cast<const Element*>(chunk.values[first + o]) + 32 * i;
      // Two turns ahead: the short runs of some outputs at a time are too short for the processor's own prefetching.
      // Values from memory: 0.73 of the time at 4 rows, 0.80 at 2. A single row, all of whose outputs are one turn, is
      // bound by memory anyway, and slower by a tenth where the values lie in the cache.
      if constexpr (kRows > 1) {
        __builtin_prefetch(reinterpret_cast<const char*>(p) + 2 * kOutputs * chunk.output_bytes);
      }
      const Values values(p, there);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        uint32_t picked;
        if constexpr (kOrder == kHalf) {
          picked = static_cast<uint32_t>(_pext_u64(x[i * x_stride + r], chunk.masks[first + o].word[i]));
        } else if constexpr (kOrder == kAny) {
          picked = buffer[r * kOutputs + o][i];
        } else {
          picked = static_cast<uint32_t>(x[i / 2 * x_stride + r] >> i % 2 * 32);
        }
        sum[r * kOutputs + o] = values.add(sum[r * kOutputs + o], picked);
      }
    }
  };
  int64_t i = 0;
  for (; i < kept / 32; ++i) step(i, ~0u);
  if (kept % 32 != 0) step(i, (1u << kept % 32) - 1u);
#pragma GCC unroll 8
  for (int j = 0; j < kPairs; ++j) sums[j] = sum[j];
}

// Eight outputs from `output` on; those that are not there repeat the first.
struct Tile {
  const NMWeight& w;
  const uint8_t* block;
  int rows;
  int64_t last;
  float* y;
  int64_t ldy;
  BitOrder order;
  int64_t kept_all = kept_count(w);
  int bits = index_bits(w);

  // All rows, so that the weights come from memory once.
  template <class Values>
  void run(int64_t output, Chunk& chunk) const {
    int row = 0;
    for (; rows - row > 4; row += 8) run_rows<Values, 8>(row, output, chunk);
    if (rows - row > 2) {
      run_rows<Values, 4>(row, output, chunk);
    } else if (rows - row == 2) {
      run_rows<Values, 2>(row, output, chunk);
    } else if (rows - row == 1) {
      run_rows<Values, 1>(row, output, chunk);
    }
  }

 private:
  // Rows from `row` on: sums of eight pairs at a time, the eight outputs in kRows turns.
  template <class Values, int kRows>
  void run_rows(int row, int64_t output, Chunk& chunk) const {
    constexpr int kOutputs = kPairs / kRows;
    __m512 sums[kRows][kPairs];
    for (auto& turn : sums) {
      for (auto& sum : turn) sum = _mm512_setzero_ps();
    }
    const int64_t k = w.k(), x_stride = padded_rows(rows);
    for (int64_t at = 0; at < k; at += kMaskChunk) {
      const int64_t count = k - at < kMaskChunk ? k - at : kMaskChunk;
      const int64_t kept = read_weights(output, at, count, chunk);
      const auto* const x = reinterpret_cast<const uint64_t*>(block) + at / 64 * x_stride + row;
      for (int turn = 0; turn < kRows; ++turn) {
        const int first = turn * kOutputs;
        switch (order) {
          case kHalf: add_chunk<Values, kHalf, kOutputs>(x, x_stride, chunk, first, count, kept, sums[turn]); break;
          case kAny: add_chunk<Values, kAny, kOutputs>(x, x_stride, chunk, first, count, kept, sums[turn]); break;
          default: add_chunk<Values, kAll, kOutputs>(x, x_stride, chunk, first, count, kept, sums[turn]);
        }
      }
    }
    for (int turn = 0; turn < kRows; ++turn) {
      alignas(32) float result[kPairs];
      _mm256_store_ps(result, lane_sums(sums[turn]));
      const int64_t first = output + turn * kOutputs;
      for (int r = 0; r < kRows && row + r < rows; ++r) {
        for (int o = 0; o < kOutputs && first + o < last; ++o) {
          y[(row + r) * ldy + first + o] = result[r * kOutputs + o];
        }
      }
    }
  }

  // Weights `at` to `at + count` along k of the eight outputs; returns how many values each has there.
  int64_t read_weights(int64_t output, int64_t at, int64_t count, Chunk& chunk) const {
    const int64_t before = order == kAll ? at : at / w.m * w.n, kept = order == kAll ? count : count / w.m * w.n;
    for (int o = 0; o < kPairs; ++o) {
      const int64_t start = (output + o < last ? output + o : output) * kept_all + before;
      if (order != kAll) chunk.masks[o].read(w, start * bits, count);
      chunk.values[o] = static_cast<const uint8_t*>(w.values) + start * kNMTypeBytes[w.type];
      if (kNMTypeBytes[w.type] == 1) {
        decode_bf16(w, start, kept, chunk.decoded[o]);
        chunk.values[o] = chunk.decoded[o];
      }
    }
    return kept;
  }
};

void run(const NMWeight& w, const uint8_t* block, int rows, int64_t first, int64_t last, float* y, int64_t ldy) {
  const bool half = w.indices != nullptr && 2 * w.n == w.m && 64 % w.m == 0;
  const Tile tile{w, block, rows, last, y, ldy, w.indices == nullptr ? kAll : half ? kHalf : kAny};
  Chunk chunk;
  chunk.output_bytes = kNMTypeBytes[w.type] == 1 ? 0 : tile.kept_all * kNMTypeBytes[w.type];
  chunk.per_word = w.m > 0 && 64 % w.m == 0 ? 64 / w.m * w.n : 0;
  for (int64_t o = first; o < last; o += kPairs) {
    switch (w.type) {
      case kNMFloat32: tile.run<FloatValues>(o, chunk); break;
      case kNMFloat16: tile.run<HalfValues>(o, chunk); break;
      default: tile.run<Bf16Values>(o, chunk);
    }
  }
}

#endif

}  // namespace

#if defined(__AVX512VBMI__) && defined(__AVX512BF16__) && defined(__BMI2__)
extern const NMKernel SNN_CONCAT(nm_few_rows_, SNN_ISA){takes, prepare, run};
#else
extern const NMKernel SNN_CONCAT(nm_few_rows_, SNN_ISA){nullptr, nullptr, nullptr};
#endif

}  // namespace snn_core
