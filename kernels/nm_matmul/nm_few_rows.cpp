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
  alignas(64) uint16_t decoded[kPairs][kMaskChunk];
};

// Spike bits in the order of the values, 32 a word.
template <int kOutputs>
void compress_bits(const uint64_t* x, int64_t x_stride, const Chunk& chunk, int64_t words,
                   uint32_t (&out)[kPairs][2 * kWords + 1]) {
  for (int o = 0; o < kOutputs; ++o) {
    for (int r = 0; r < kPairs / kOutputs; ++r) {
      uint64_t held = 0;
      int count = 0;
      uint32_t* target = out[r * kOutputs + o];
      for (int64_t i = 0; i < 2 * words; ++i) {
        const auto mask = static_cast<uint32_t>(chunk.masks[o].word[i / 2] >> i % 2 * 32);
        held |= static_cast<uint64_t>(_pext_u32(static_cast<uint32_t>(x[i / 2 * x_stride + r] >> i % 2 * 32), mask)) << count;
        count += __builtin_popcount(mask);
        *target = static_cast<uint32_t>(held);
        target += count / 32;
        held = count >= 32 ? held >> 32 : held;
        count %= 32;
      }
      *target = static_cast<uint32_t>(held);
    }
  }
}

// How the bits of the values come about.
enum BitOrder { kHalf, kAny, kAll };  // every second weight of 64 is kept; any pattern; a dense weight

// Adds a chunk to the sums of rows x outputs; kept: values of an output in it.
template <class Values, BitOrder kOrder, int kOutputs>
void add_chunk(const uint64_t* x, int64_t x_stride, const Chunk& chunk, int64_t words, int64_t kept,
               __m512 (&sums)[kPairs]) {
  constexpr int kRows = kPairs / kOutputs;
  using Element = typename Values::Element;
  uint32_t buffer[kOrder == kAny ? kPairs : 1][2 * kWords + 1];
  if constexpr (kOrder == kAny) compress_bits<kOutputs>(x, x_stride, chunk, words, buffer);
  __m512 sum[kPairs];
#pragma GCC unroll 8
  for (int i = 0; i < kPairs; ++i) sum[i] = sums[i];
  const auto step = [&](int64_t i, uint32_t there) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) {
      const Values values(static_cast<const Element*>(chunk.values[o]) + 32 * i, there);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        uint32_t picked;
        if constexpr (kOrder == kHalf) {
          picked = static_cast<uint32_t>(_pext_u64(x[i * x_stride + r], chunk.masks[o].word[i]));
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

// Rows from `row` on of outputs from `output` on; outputs that are not there repeat the first.
struct Tile {
  const NMWeight& w;
  const uint8_t* block;
  int rows;
  int64_t last;
  float* y;
  int64_t ldy;
  BitOrder order;

  template <class Values, int kOutputs>
  void run(int row, int64_t output, Chunk& chunk) const {
    constexpr int kRows = kPairs / kOutputs;
    __m512 sums[kPairs];
    for (auto& sum : sums) sum = _mm512_setzero_ps();
    const int64_t k = w.k(), kept_all = kept_count(w), x_stride = padded_rows(rows);
    for (int64_t at = 0; at < k; at += kMaskChunk) {
      const int64_t count = k - at < kMaskChunk ? k - at : kMaskChunk;
      const int64_t before = order == kAll ? at : at / w.m * w.n, kept = order == kAll ? count : count / w.m * w.n;
      const uint64_t* const x = reinterpret_cast<const uint64_t*>(block) + at / 64 * x_stride + row;
      for (int o = 0; o < kOutputs; ++o) {
        const int64_t from = output + o < last ? output + o : output;
        if (order != kAll) chunk.masks[o].read(w, from, at, count);
        const int64_t start = from * kept_all + before;
        chunk.values[o] = static_cast<const uint8_t*>(w.values) + start * kNMTypeBytes[w.type];
        if (kNMTypeBytes[w.type] == 1) {
          decode_bf16(w, start, kept, chunk.decoded[o]);
          chunk.values[o] = chunk.decoded[o];
        }
      }
      const int64_t words = (count + 63) / 64;
      switch (order) {
        case kHalf: add_chunk<Values, kHalf, kOutputs>(x, x_stride, chunk, words, kept, sums); break;
        case kAny: add_chunk<Values, kAny, kOutputs>(x, x_stride, chunk, words, kept, sums); break;
        default: add_chunk<Values, kAll, kOutputs>(x, x_stride, chunk, words, kept, sums);
      }
    }
    alignas(32) float result[kPairs];
    _mm256_store_ps(result, lane_sums(sums));
    for (int r = 0; r < kRows && row + r < rows; ++r) {
      for (int o = 0; o < kOutputs && output + o < last; ++o) {
        y[(row + r) * ldy + output + o] = result[r * kOutputs + o];
      }
    }
  }

  // Eight outputs of all rows, so that their weights come from memory once.
  template <class Values>
  void outputs(int64_t output, Chunk& chunk) const {
    int row = 0;
    for (; rows - row > 4; row += 8) {
      for (int o = 0; o < 8 && output + o < last; ++o) run<Values, 1>(row, output + o, chunk);
    }
    if (rows - row > 2) {
      for (int o = 0; o < 8 && output + o < last; o += 2) run<Values, 2>(row, output + o, chunk);
    } else if (rows - row == 2) {
      for (int o = 0; o < 8 && output + o < last; o += 4) run<Values, 4>(row, output + o, chunk);
    } else if (rows - row == 1) {
      run<Values, 8>(row, output, chunk);
    }
  }
};

void run(const NMWeight& w, const uint8_t* block, int rows, int64_t first, int64_t last, float* y, int64_t ldy) {
  const bool half = w.indices != nullptr && 2 * w.n == w.m && 64 % w.m == 0;
  const Tile tile{w, block, rows, last, y, ldy, w.indices == nullptr ? kAll : half ? kHalf : kAny};
  Chunk chunk;
  for (int64_t o = first; o < last; o += kPairs) {
    switch (w.type) {
      case kNMFloat32: tile.outputs<FloatValues>(o, chunk); break;
      case kNMFloat16: tile.outputs<HalfValues>(o, chunk); break;
      default: tile.outputs<Bf16Values>(o, chunk);
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
