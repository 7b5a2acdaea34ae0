// Lookup path: four weights have 16 subset sums, which is one vector: the four spike bits of a row pick one of them
// (vpermps), sixteen rows at once. A kept pattern becomes the four bits by one affine map of the spike byte (GFNI).
// Time depends neither on the firing rate nor on the values.

#include "nm_matmul/nm_tiles.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

#if defined(__GFNI__) && defined(__AVX512BF16__)

constexpr int kTileOutputs = 4;  // 4 x 4 sums in registers
constexpr int kChunk = 128;      // spike bytes whose weights are decoded at once

// The affine map that brings bits `position[q]` of a byte to bits q: row 7 - q of the matrix is the mask of result q.
constexpr uint64_t select_bit(int q, int position) { return (uint64_t{1} << position) << (8 * (7 - q)); }

// How the byte of indices of four kept weights tells the bits: of one spike byte (2:4), of two (1:4).
struct SelectTables {
  uint64_t two_of_four[256] = {};
  uint64_t one_of_four[2][16] = {};
  uint64_t four_of_eight[2][64] = {};
  uint64_t one_of_two[16] = {};
  constexpr SelectTables() {
    for (int code = 0; code < 256; ++code) {
      for (int q = 0; q < 4; ++q) two_of_four[code] |= select_bit(q, q / 2 * 4 + (code >> 2 * q & 3));
    }
    for (int code = 0; code < 16; ++code) {
      for (int q = 0; q < 4; ++q) {
        one_of_four[q / 2][code] |= select_bit(q, q % 2 * 4 + (code >> 2 * (q % 2) & 3));
        one_of_two[code] |= select_bit(q, 2 * q + (code >> q & 1));
      }
    }
    for (int code = 0; code < 64; ++code) {
      for (int q = 0; q < 4; ++q) four_of_eight[q / 2][code] |= select_bit(q, code >> 3 * (q % 2) & 7);
    }
  }
};
constexpr SelectTables kSelect;

// What a group of four weights covers.
enum Form { kTwoOfFour, kOneOfFour, kMatrix, kDense };

bool is_pattern(const NMWeight& w, int n, int m) { return w.n == n && w.m == m; }

// 4:8 and 1:2 have four kept weights to a byte as well, with codes of 12 and 4 bits.
int code_bits(const NMWeight& w) { return is_pattern(w, 4, 8) ? 12 : 4; }

bool takes(const NMWeight& w) {
  if (w.segment % 8 != 0) return false;
  if (w.indices == nullptr) return true;
  return is_pattern(w, 2, 4) || is_pattern(w, 4, 8) || is_pattern(w, 1, 2) ||
         (is_pattern(w, 1, 4) && w.segment % 16 == 0);
}

Form form_of(const NMWeight& w) {
  if (w.indices == nullptr) return kDense;
  if (is_pattern(w, 2, 4)) return kTwoOfFour;
  return is_pattern(w, 1, 4) ? kOneOfFour : kMatrix;
}

// What the next four outputs hold where these have the chunk: asked for while these are added, since the runs of a
// chunk are too short for the processor's own prefetching.
struct Ahead {
  const char* values;
  int64_t step;  // bytes of values of four outputs for a byte of spikes
};

// Weights of four outputs along a chunk: values, and codes (bytes of indices, or matrices).
template <class Value>
struct Chunk {
  const Value* values[kTileOutputs];
  const uint8_t* codes[kTileOutputs];
  const uint64_t* matrices[kTileOutputs];
  Ahead ahead;
};

SNN_VECTOR_INLINE __m512i affine(__m512i x, uint64_t matrix) {
  return _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(static_cast<int64_t>(matrix)), 0);
}

// Adds the chunk to the sums, which start at 0 with `begin`; x: spike bytes of the chunk, 64 rows each.
template <Form kForm, int kCount, class Value>
void add_chunk(const Chunk<Value>& w, const uint8_t* x, int64_t bytes, bool begin, float (*tile)[kNMBlockRows]) {
  const SubsetSums<Value> subset_sums;
  __m512 sum[kTileOutputs][kCount];
#pragma GCC unroll 4
  for (int a = 0; a < kTileOutputs; ++a) {
#pragma GCC unroll 4
    for (int g = 0; g < kCount; ++g) sum[a][g] = begin ? _mm512_setzero_ps() : _mm512_load_ps(tile[a] + g * kGroup);
  }
  constexpr int kStep = kForm == kOneOfFour ? 2 : 1;
  const char* ahead = w.ahead.values;
  for (int64_t i = 0; i < bytes / kStep; ++i, ahead += kStep * w.ahead.step) {
    __builtin_prefetch(ahead);
    const __m512i spikes = _mm512_load_si512(x + i * kStep * kNMBlockRows);
    if constexpr (kForm == kTwoOfFour) {
#pragma GCC unroll 4
      for (int a = 0; a < kTileOutputs; ++a) {
        add_picked(affine(spikes, kSelect.two_of_four[w.codes[a][i]]), subset_sums(w.values[a] + 4 * i),
                   sum[a]);
      }
    } else if constexpr (kForm == kOneOfFour) {
      const __m512i next = _mm512_load_si512(x + (2 * i + 1) * kNMBlockRows);
#pragma GCC unroll 4
      for (int a = 0; a < kTileOutputs; ++a) {
        const int code = w.codes[a][i];
        const __m512i index = _mm512_or_si512(affine(spikes, kSelect.one_of_four[0][code & 15]),
                                              affine(next, kSelect.one_of_four[1][code >> 4]));
        add_picked(index, subset_sums(w.values[a] + 4 * i), sum[a]);
      }
    } else if constexpr (kForm == kMatrix) {
#pragma GCC unroll 4
      for (int a = 0; a < kTileOutputs; ++a) {
        add_picked(affine(spikes, w.matrices[a][i]), subset_sums(w.values[a] + 4 * i), sum[a]);
      }
    } else {
      __m512i shifted[kCount];
#pragma GCC unroll 4
      for (int g = 0; g < kCount; ++g) shifted[g] = _mm512_srli_epi32(spikes, 8 * g);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 4
        for (int a = 0; a < kTileOutputs; ++a) {
          const __m512 table = subset_sums(w.values[a] + 8 * i + 4 * half);
#pragma GCC unroll 4
          for (int g = 0; g < kCount; ++g) {
            sum[a][g] = _mm512_add_ps(sum[a][g], _mm512_permutexvar_ps(shifted[g], table));
          }
        }
#pragma GCC unroll 4
        for (int g = 0; g < kCount; ++g) shifted[g] = _mm512_srli_epi32(shifted[g], 4);
      }
    }
  }
#pragma GCC unroll 4
  for (int a = 0; a < kTileOutputs; ++a) {
#pragma GCC unroll 4
    for (int g = 0; g < kCount; ++g) _mm512_store_ps(tile[a] + g * kGroup, sum[a][g]);
  }
}

template <Form kForm, class Value>
void add_chunk(const Chunk<Value>& w, const uint8_t* x, int64_t bytes, int groups, bool begin,
               float (*tile)[kNMBlockRows]) {
  switch (groups) {
    case 1: return add_chunk<kForm, 1>(w, x, bytes, begin, tile);
    case 2: return add_chunk<kForm, 2>(w, x, bytes, begin, tile);
    case 3: return add_chunk<kForm, 3>(w, x, bytes, begin, tile);
    default: return add_chunk<kForm, 4>(w, x, bytes, begin, tile);
  }
}

template <class Value>
void add_chunk(Form form, const Chunk<Value>& w, const uint8_t* x, int64_t bytes, int groups, bool begin,
               float (*tile)[kNMBlockRows]) {
  switch (form) {
    case kTwoOfFour: return add_chunk<kTwoOfFour>(w, x, bytes, groups, begin, tile);
    case kOneOfFour: return add_chunk<kOneOfFour>(w, x, bytes, groups, begin, tile);
    case kMatrix: return add_chunk<kMatrix>(w, x, bytes, groups, begin, tile);
    default: return add_chunk<kDense>(w, x, bytes, groups, begin, tile);
  }
}

// Where decoded weights of a chunk stand.
struct Scratch {
  alignas(64) float values[kTileOutputs][8 * kChunk];
  uint64_t matrices[kTileOutputs][kChunk];
};

// Matrices of groups `first` to `first + count` of the weight's own order.
void read_matrices(const NMWeight& w, int64_t first, int64_t count, uint64_t* out) {
  const int bits = code_bits(w);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t bit = (first + i) * bits;
    const uint32_t low = w.indices[bit / 8] >> bit % 8;
    if (bits == 4) {
      out[i] = kSelect.one_of_two[low & 15];
    } else {
      const uint32_t code = low | static_cast<uint32_t>(w.indices[bit / 8 + 1]) << (8 - bit % 8);
      out[i] = kSelect.four_of_eight[0][code & 63] | kSelect.four_of_eight[1][code >> 6 & 63];
    }
  }
}

// One tile of four outputs; outputs past the last repeat it, and their sums are not stored.
struct TileTask {
  const NMWeight& w;
  Form form;
  const uint8_t* block;
  int groups;
  int64_t per_byte;  // values of an output to a spike byte

  void add(const int64_t (&outputs)[kTileOutputs], float (*tile)[kNMBlockRows], Scratch& scratch) const {
    const int64_t bytes = w.row_bytes();
    for (int64_t first = 0; first < bytes; first += kChunk) {
      const int64_t count = bytes - first < kChunk ? bytes - first : kChunk;
      bool as_bf16 = fits_bf16(w);
      Chunk<uint16_t> narrow;
      Chunk<float> wide;
      narrow.ahead = wide.ahead = ahead_of(outputs[0], first, count);
      for (int a = 0; a < kTileOutputs; ++a) {
        const int64_t group = outputs[a] * bytes + first;
        narrow.codes[a] = wide.codes[a] = form == kTwoOfFour ? w.indices + group : w.indices + group / 2;
        narrow.matrices[a] = wide.matrices[a] = scratch.matrices[a];
        if (form == kMatrix) read_matrices(w, group, count, scratch.matrices[a]);
        if (as_bf16) {
          narrow.values[a] = bf16_values(group * per_byte, count * per_byte, scratch.values[a]);
          // A product with an infinity or NaN that no spike picks would spoil its table: such weights are added.
          as_bf16 = w.finite || all_finite(narrow.values[a], count * per_byte);
        }
      }
      if (as_bf16) {
        add_chunk(form, narrow, block + first * kNMBlockRows, count, groups, first == 0, tile);
        continue;
      }
      for (int a = 0; a < kTileOutputs; ++a) {
        wide.values[a] = float_values((outputs[a] * bytes + first) * per_byte, count * per_byte, scratch.values[a]);
      }
      add_chunk(form, wide, block + first * kNMBlockRows, count, groups, first == 0, tile);
    }
  }

  // The chunk's share of what the next tile reads; its codes, some lines, are asked for here.
  Ahead ahead_of(int64_t output, int64_t first, int64_t count) const {
    const int64_t step = kTileOutputs * per_byte * kNMTypeBytes[w.type], start = (output + kTileOutputs) * w.row_bytes();
    if (w.indices != nullptr) {
      const int64_t bits = kept_count(w) * index_bits(w), row = bits / w.row_bytes() * kTileOutputs;
      const auto* const codes = reinterpret_cast<const char*>(w.indices) + (output + kTileOutputs) * bits / 8;
      for (int64_t byte = first * row / 8; byte < (first + count) * row / 8; byte += 64) __builtin_prefetch(codes + byte);
    }
    return {static_cast<const char*>(w.values) + start * step / kTileOutputs + first * step, step};
  }

  const uint16_t* bf16_values(int64_t start, int64_t count, float* scratch) const {
    if (w.type == kNMBFloat16) return static_cast<const uint16_t*>(w.values) + start;
    auto* const out = reinterpret_cast<uint16_t*>(scratch);
    decode_bf16(w, start, count, out);
    return out;
  }

  const float* float_values(int64_t start, int64_t count, float* scratch) const {
    if (w.type == kNMFloat32) return static_cast<const float*>(w.values) + start;
    decode_values(w, start, count, scratch);
    return scratch;
  }
};

void run(const NMWeight& w, const uint8_t* block, int rows, int64_t first, int64_t last, float* y, int64_t ldy) {
  const Form form = form_of(w);
  const TileTask task{w, form, block, (rows + kGroup - 1) / kGroup,
                      form == kDense ? 8 : form == kOneOfFour ? 2 : 4};
  Scratch scratch;
  SumTile tile;
  if (w.k() == 0) __builtin_memset(&tile, 0, sizeof(tile));
  for (int64_t o = first; o < last; o += kNMOutputStep) {
    const int64_t end = last - o < kNMOutputStep ? last : o + kNMOutputStep;
    // The processor would otherwise ask for the lines of the result when the sums are there, and wait.
    for (int row = 0; row < rows; ++row) __builtin_prefetch(y + row * ldy + o, 1);
    for (int64_t at = o; at < end; at += kTileOutputs) {
      int64_t outputs[kTileOutputs];
      for (int a = 0; a < kTileOutputs; ++a) outputs[a] = at + a < end ? at + a : end - 1;
      task.add(outputs, tile.sum + (at - o), scratch);
    }
    store_tile(tile, rows, static_cast<int>(end - o), y + o, ldy);
  }
}

bool takes_wide(const NMWeight& w) { return w.finite && w.type == kNMBFloat16 && form_of(w) == kTwoOfFour; }

// Sums of one output with 256 rows, so that a table serves four times as many. The shift by 16 is a product, which has
// the ports of the table's dot products: see add_picked. Not inlined, where the compiler spills the table.
__attribute__((noinline)) void add_wide(const uint16_t* values, const uint8_t* codes, const uint8_t* const* blocks, int64_t bytes,
              SumTile* tiles, int64_t output) {
  const SubsetSums<uint16_t> subset_sums;
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512i upper_word = _mm512_set1_epi32(1 << 16);
  __m512 sum[kNMWideBlocks][kGroups];
#pragma GCC unroll 4
  for (int b = 0; b < kNMWideBlocks; ++b) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) sum[b][g] = _mm512_setzero_ps();
  }
  const uint8_t *const x0 = blocks[0], *const x1 = blocks[1], *const x2 = blocks[2], *const x3 = blocks[3];
  for (int64_t i = 0; i < bytes; ++i) {
    const __m512 table = subset_sums(values + 4 * i);
    const uint64_t matrix = kSelect.two_of_four[codes[i]];
    const uint8_t* const lines[kNMWideBlocks] = {x0, x1, x2, x3};
#pragma GCC unroll 4
    for (int b = 0; b < kNMWideBlocks; ++b) {
      const __m512i index = affine(_mm512_load_si512(lines[b] + i * kNMBlockRows), matrix);
      const __m512i third = _mm512_madd_epi16(index, upper_word);
      sum[b][0] = _mm512_fmadd_ps(_mm512_permutexvar_ps(index, table), one, sum[b][0]);
      sum[b][1] = _mm512_add_ps(sum[b][1], _mm512_permutexvar_ps(_mm512_srli_epi32(index, 8), table));
      sum[b][2] = _mm512_add_ps(sum[b][2], _mm512_permutexvar_ps(third, table));
      sum[b][3] = _mm512_add_ps(sum[b][3], _mm512_permutexvar_ps(_mm512_srli_epi32(index, 24), table));
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < kNMWideBlocks; ++b) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) _mm512_store_ps(tiles[b].sum[output] + g * kGroup, sum[b][g]);
  }
}

void run_wide(const NMWeight& w, const uint8_t* const* blocks, int rows, int64_t first, int64_t last,
              float* const* y, int64_t ldy) {
  const int64_t bytes = w.row_bytes();
  const auto* const values = static_cast<const uint16_t*>(w.values);
  SumTile tiles[kNMWideBlocks];
  for (int64_t o = first; o < last; o += kNMOutputStep) {
    const int64_t end = last - o < kNMOutputStep ? last : o + kNMOutputStep;
    for (int b = 0; b < kNMWideBlocks; ++b) {
      for (int row = 0; row < rows; ++row) __builtin_prefetch(y[b] + row * ldy + o, 1);
    }
    for (int64_t at = o; at < end; ++at) {
      add_wide(values + 4 * bytes * at, w.indices + bytes * at, blocks, bytes, tiles, at - o);
    }
    for (int b = 0; b < kNMWideBlocks; ++b) {
      store_tile(tiles[b], rows, static_cast<int>(end - o), y[b] + o, ldy);
    }
  }
}

// Whether values of these outputs can be taken by dot products: true is for all of them.
bool finite(const NMWeight& w, int64_t first, int64_t last) {
  const int64_t kept = kept_count(w);
  if (w.type == kNMInt8) return true;
  return w.type == kNMBFloat16 &&
         all_finite(static_cast<const uint16_t*>(w.values) + first * kept, (last - first) * kept);
}

// [byte] lines of 64 rows: see spike_lines.
void prepare(const NMWeight& w, const uint8_t* bits, int64_t stride, int rows, uint8_t* block) {
  const int64_t bytes = w.row_bytes();
  for (int64_t first = 0; first < bytes; first += 64) {
    const int count = bytes - first < 64 ? static_cast<int>(bytes - first) : 64;
    spike_lines(bits + first, stride, rows, count, block + first * kNMBlockRows);
  }
}

#endif

}  // namespace

#if defined(__GFNI__) && defined(__AVX512BF16__)
extern const NMKernel SNN_CONCAT(nm_lookup_, SNN_ISA){takes, prepare, run, finite, takes_wide, run_wide};
#else
extern const NMKernel SNN_CONCAT(nm_lookup_, SNN_ISA){nullptr, nullptr, nullptr, nullptr};
#endif

}  // namespace snn_core
