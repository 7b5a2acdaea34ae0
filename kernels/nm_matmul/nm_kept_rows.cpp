// Kept-driven path, for every pattern: four kept weights, wherever they stand, have 16 subset sums, which is one vector;
// their spike bits in 64 rows are four masks, which make the four bits that pick a sum for each row. Time depends on
// the number of kept weights alone.

#include "nm_matmul/nm_masks.h"
#include "nm_matmul/nm_tiles.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

#if defined(__AVX512BW__)

constexpr int64_t kChunk = 1024;  // kept weights decoded at once, a multiple of 64

bool takes(const NMWeight& w) { return w.indices != nullptr && w.k() < (int64_t{1} << 31); }

// [k] masks of rows: bit 4 i + g is of row 16 g + i.
void prepare(const NMWeight& w, const uint8_t* bits, int64_t stride, int rows, uint8_t* block) {
  auto* const masks = reinterpret_cast<uint64_t*>(block);
  const int64_t segment_bytes = w.segment_bytes();
  alignas(64) uint8_t lines[64][kNMBlockRows];
  for (int64_t s = 0; s < w.segments; ++s) {
    for (int64_t first = 0; first < segment_bytes; first += 64) {
      const int count = segment_bytes - first < 64 ? static_cast<int>(segment_bytes - first) : 64;
      spike_lines(bits + s * segment_bytes + first, stride, rows, count, lines[0]);
      for (int64_t i = 0; i < count; ++i) {
        const __m512i line = _mm512_load_si512(lines[i]);
        uint64_t* const out = masks + s * w.segment + (first + i) * 8;
        const int64_t rest = w.segment - (first + i) * 8;
        for (int64_t j = 0; j < 8 && j < rest; ++j) {
          out[j] = _mm512_test_epi8_mask(line, _mm512_set1_epi8(static_cast<char>(1 << j)));
        }
      }
    }
  }
}

// Kept weights of an output: where along k, and their values.
struct Kept {
  alignas(64) uint32_t place[kChunk];
  alignas(64) float values[kChunk];
};

// Reads where kept weights `first` to `first + count` of `output` stand; `first` is a multiple of 64. Writes up to a
// multiple of 64.
void read_places(const NMWeight& w, int64_t output, int64_t first, int64_t count, uint32_t* place) {
  const int bits = index_bits(w);
  const int64_t start = (output * kept_count(w) + first) * bits;
  int64_t block = first / w.n * w.m;
#if defined(__AVX512VBMI__)
  if (64 % w.n == 0) {
    const PositionVectors positions(w, start);
    const __m512i last = _mm512_set1_epi32(static_cast<int32_t>(w.k() - 1));  // whatever the indices say
    alignas(64) uint32_t block_start[64];
    for (int j = 0; j < 64; ++j) block_start[j] = static_cast<uint32_t>(j / w.n * w.m);
    for (int64_t i = 0; i < count; i += 64, block += 64 / w.n * w.m) {
      alignas(64) uint8_t position[64];
      _mm512_store_si512(position, positions.read(i));
      const __m512i base = _mm512_set1_epi32(static_cast<int32_t>(block));
#pragma GCC unroll 4
      for (int q = 0; q < 64; q += 16) {
        const __m512i wide = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(position + q)));
        const __m512i at = _mm512_add_epi32(_mm512_add_epi32(wide, base), _mm512_load_si512(block_start + q));
        _mm512_store_si512(place + i + q, _mm512_min_epu32(at, last));
      }
    }
    return;
  }
#endif
  int in_block = static_cast<int>(first % w.n);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t bit = start + i * bits;
    uint32_t code = w.indices[bit / 8] >> bit % 8;
    if (bit % 8 + bits > 8) code |= static_cast<uint32_t>(w.indices[bit / 8 + 1]) << (8 - bit % 8);
    const int64_t at = block + (code & ((1u << bits) - 1u));
    place[i] = static_cast<uint32_t>(at < w.k() ? at : w.k() - 1);
    if (++in_block == w.n) in_block = 0, block += w.m;
  }
}

// `count`, a multiple of four, kept weights into the sums of one output.
template <int kCount, class Value>
SNN_VECTOR_INLINE void add_kept(const uint64_t* masks, const uint32_t* place, const Value* values, int64_t count,
                                float* tile) {
  const SubsetSums<Value> subset_sums;
  __m512 sum[kCount];
#pragma GCC unroll 4
  for (int g = 0; g < kCount; ++g) sum[g] = _mm512_load_ps(tile + g * kGroup);
  const __m512i one = _mm512_set1_epi8(1), two = _mm512_set1_epi8(2), four = _mm512_set1_epi8(4),
                eight = _mm512_set1_epi8(8);
  for (int64_t i = 0; i < count; i += 4) {
    __m512i index = _mm512_maskz_mov_epi8(masks[place[i]], one);
    index = _mm512_mask_add_epi8(index, masks[place[i + 1]], index, two);
    index = _mm512_mask_add_epi8(index, masks[place[i + 2]], index, four);
    index = _mm512_mask_add_epi8(index, masks[place[i + 3]], index, eight);
    add_picked(index, subset_sums(values + i), sum);
  }
#pragma GCC unroll 4
  for (int g = 0; g < kCount; ++g) _mm512_store_ps(tile + g * kGroup, sum[g]);
}

template <int kCount>
void add_output(const NMWeight& w, int64_t output, const uint64_t* masks, float* tile, Kept& kept) {
  const int64_t total = kept_count(w);
  for (int64_t first = 0; first < total; first += kChunk) {
    const int64_t count = total - first < kChunk ? total - first : kChunk, padded = (count + 3) / 4 * 4;
    const int64_t start = output * total + first;
    read_places(w, output, first, count, kept.place);
    for (int64_t i = count; i < padded; ++i) kept.place[i] = 0;  // with weights of zero
#if defined(__AVX512BF16__)
    if (fits_bf16(w)) {
      const auto* values = static_cast<const uint16_t*>(w.values) + start;
      if (w.type != kNMBFloat16 || padded != count) {
        auto* const narrow = reinterpret_cast<uint16_t*>(kept.values);
        decode_bf16(w, start, count, narrow);
        for (int64_t i = count; i < padded; ++i) narrow[i] = 0;
        values = narrow;
      }
      // A product with an infinity or NaN that no spike picks would spoil its table: such weights are added.
      if (all_finite(values, count)) {
        add_kept<kCount>(masks, kept.place, values, padded, tile);
        continue;
      }
    }
#endif
    decode_values(w, start, count, kept.values);
    for (int64_t i = count; i < padded; ++i) kept.values[i] = 0.0f;
    add_kept<kCount>(masks, kept.place, static_cast<const float*>(kept.values), padded, tile);
  }
}

using AddOutput = void (*)(const NMWeight&, int64_t, const uint64_t*, float*, Kept&);
constexpr AddOutput kAddOutput[kGroups] = {add_output<1>, add_output<2>, add_output<3>, add_output<4>};

void run(const NMWeight& w, const uint8_t* block, int rows, int64_t first, int64_t last, float* y, int64_t ldy) {
  const AddOutput add = kAddOutput[(rows + kGroup - 1) / kGroup - 1];
  SumTile tile;
  Kept kept;
  for (int64_t o = first; o < last; o += kNMOutputStep) {
    const int64_t end = last - o < kNMOutputStep ? last : o + kNMOutputStep;
    __builtin_memset(&tile, 0, sizeof(tile));
    for (int64_t at = o; at < end; ++at) {
      add(w, at, reinterpret_cast<const uint64_t*>(block), tile.sum[at - o], kept);
    }
    store_tile(tile, rows, static_cast<int>(end - o), y + o, ldy);
  }
}

#endif

}  // namespace

#if defined(__AVX512BW__)
extern const NMKernel SNN_CONCAT(nm_kept_, SNN_ISA){takes, prepare, run};
#else
extern const NMKernel SNN_CONCAT(nm_kept_, SNN_ISA){nullptr, nullptr, nullptr};
#endif

}  // namespace snn_core
