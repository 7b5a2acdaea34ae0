// Few rows of dense activations x compressed weights: values are expanded by the bits of the kept weights in registers,
// so that the weight is read once and in its compressed form.

#include "nm_matmul/nm_masks.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

#if defined(__AVX512VBMI2__) && defined(__AVX512BF16__) && defined(__BMI2__)

constexpr int kOutputs = 8;  // outputs walked together

bool takes(const NMWeight& w) { return w.indices != nullptr && w.segments == 1 && fits_mask_chunks(w); }

// Rows of a tile: the sums of a tile are those of 8 pairs of rows and outputs, or of 16 rows.
int tile_rows(int rows) { return rows <= 1 ? 1 : rows <= 2 ? 2 : rows <= 4 ? 4 : rows <= 8 ? 8 : 16; }

bool as_bf16(const NMWeight& w, int type) { return type == kNMBFloat16 && fits_bf16(w); }

int64_t prepared_bytes(const NMWeight& w, int rows) { return tile_rows(rows) * ((w.k() + 63) / 64 * 64) * 4; }

// Vectors of a row in turn with those of the other rows, [k / lanes][tile row][lanes]: in bfloat16 where the weights are
// exact in it too, else in float32. Zeros after the last weight and row.
void prepare(const NMWeight& w, const void* x, int type, int64_t ldx, int rows, void* prepared) {
  const int tile = tile_rows(rows);
  const int64_t k = w.k();
  __builtin_memset(prepared, 0, prepared_bytes(w, rows));
  const NMWeight source{x, type, nullptr, 0, 0, 0, 0, 1, 0};
  for (int r = 0; r < rows; ++r) {
    if (as_bf16(w, type)) {
      auto* const out = static_cast<uint16_t*>(prepared) + r * 32;
      const auto* const row = static_cast<const uint16_t*>(x) + r * ldx;
      for (int64_t i = 0; i < k; i += 32) {
        __builtin_memcpy(out + i * tile, row + i, (k - i < 32 ? k - i : 32) * sizeof(uint16_t));
      }
    } else {
      float* const out = static_cast<float*>(prepared) + r * 16;
      for (int64_t i = 0; i < k; i += 16) {
        decode_values(source, r * ldx + i, k - i < 16 ? k - i : 16, out + i * tile);
      }
    }
  }
}

// 2:4 without bits: which of the kept values a weight takes, from the four bits of indices of its block and its place in
// it. Expanding instructions are microcoded on Zen 4 (6 cycles among others); this takes 4. Weights that are not kept
// take a place past the values, where zeros are.
template <int kLaneBytes>
struct BlockPlaces {
  __m512i shift, place, table, first;
  BlockPlaces() {
    alignas(64) uint8_t bytes[4][64];
    for (int i = 0; i < 64; ++i) {
      const int lane = i / kLaneBytes, at = i / 16, low = i & 3, high = i >> 2 & 3;
      bytes[0][i] = static_cast<uint8_t>(lane / 4 * 4);       // the bits of the block of a lane
      bytes[1][i] = static_cast<uint8_t>(lane % 4 * 16);      // place of the lane in its block
      bytes[2][i] = static_cast<uint8_t>(at == low ? 0 : at == high ? 1 : 32 / kLaneBytes);  // [place][indices]
      bytes[3][i] = static_cast<uint8_t>(lane / 4 * 2);       // values of the blocks before
    }
    shift = _mm512_load_si512(bytes[0]);
    place = _mm512_load_si512(bytes[1]);
    table = _mm512_load_si512(bytes[2]);
    first = _mm512_load_si512(bytes[3]);
  }
  // The low bits of each lane say where its value is.
  SNN_VECTOR_INLINE __m512i lanes(uint32_t indices) const {
    const __m512i bits = _mm512_multishift_epi64_epi8(shift, _mm512_set1_epi32(static_cast<int32_t>(indices)));
    const __m512i entry = _mm512_ternarylogic_epi32(bits, _mm512_set1_epi8(15), place, 0xEA);  // (bits & 15) | place
    return _mm512_add_epi8(_mm512_permutexvar_epi8(entry, table), first);
  }
};

// Vectors of weights, zeros where none is kept, times vectors of activations.
struct Bf16Dot {
  using Element = uint16_t;
  using Input = uint16_t;
  using Mask = uint32_t;
  using Weights = __m512bh;
  using Places = BlockPlaces<2>;
  static SNN_VECTOR_INLINE Weights expand(const uint16_t* p, Mask kept) {
    return (__m512bh)_mm512_maskz_expandloadu_epi16(kept, p);
  }
  static SNN_VECTOR_INLINE Weights spread(const uint16_t* p, __m512i lanes) {
    const __m512i values = _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return (__m512bh)_mm512_permutexvar_epi16(lanes, values);
  }
  static SNN_VECTOR_INLINE __m512 add(__m512 sum, Weights weights, const uint16_t* x) {
    return _mm512_dpbf16_ps(sum, weights, (__m512bh)_mm512_load_si512(x));
  }
};
template <class Values>
struct FloatDot : Values {
  using Input = float;
  using Mask = uint16_t;
  using Weights = __m512;
  using Places = BlockPlaces<4>;
  static SNN_VECTOR_INLINE Weights spread(const typename Values::Element* p, __m512i lanes) {
    return _mm512_permutexvar_ps(lanes, _mm512_zextps256_ps512(Values::eight(p)));
  }
  static SNN_VECTOR_INLINE __m512 add(__m512 sum, Weights weights, const float* x) {
    return _mm512_fmadd_ps(weights, _mm512_load_ps(x), sum);
  }
};
struct FloatValues {
  using Element = float;
  static SNN_VECTOR_INLINE __m256 eight(const float* p) { return _mm256_loadu_ps(p); }
  static SNN_VECTOR_INLINE __m512 expand(const float* p, uint16_t kept) { return _mm512_maskz_expandloadu_ps(kept, p); }
};
struct HalfValues {
  using Element = uint16_t;
  static SNN_VECTOR_INLINE __m256 eight(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static SNN_VECTOR_INLINE __m512 expand(const uint16_t* p, uint16_t kept) {
    return _mm512_cvtph_ps(_mm256_maskz_expandloadu_epi16(kept, p));
  }
};
struct Bf16Values {
  using Element = uint16_t;
  static SNN_VECTOR_INLINE __m256 eight(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static SNN_VECTOR_INLINE __m512 expand(const uint16_t* p, uint16_t kept) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_expandloadu_epi16(kept, p)), 16));
  }
};

// 2:4 in whole vectors, or any pattern by its bits.
enum Walk { kByPlaces, kByBits };

bool by_places(const NMWeight& w) { return w.n == 2 && w.m == 4 && w.k() % 32 == 0; }

struct Chunk {
  KeptMasks masks[kOutputs];
  const uint8_t* indices[kOutputs];
  const void* values[kOutputs];
  alignas(64) uint16_t decoded[kOutputs][kMaskChunk];
};

// Adds a chunk of `count` weights along k to the sums of kRows rows x kTurn outputs from `first` on.
template <class Dot, Walk kWalk, int kRows, int kTurn>
void add_chunk(const typename Dot::Input* x, const Chunk& chunk, const typename Dot::Places& places, int first,
               int64_t count, __m512 (&sums)[kRows * kTurn]) {
  using Mask = typename Dot::Mask;
  constexpr int kWidth = 8 * sizeof(Mask);
  const typename Dot::Element* values[kTurn];
  __m512 sum[kRows * kTurn];
#pragma GCC unroll 16
  for (int o = 0; o < kTurn; ++o) values[o] = static_cast<const typename Dot::Element*>(chunk.values[first + o]);
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kTurn; ++i) sum[i] = sums[i];
  for (int64_t i = 0; i * kWidth < count; ++i, x += kRows * kWidth) {
#pragma GCC unroll 16
    for (int o = 0; o < kTurn; ++o) {
      typename Dot::Weights weights;
      if constexpr (kWalk == kByPlaces) {
        const auto indices = load_unaligned<Mask>(chunk.indices[first + o] + i * sizeof(Mask));
        weights = Dot::spread(values[o] + i * (kWidth / 2), places.lanes(indices));
      } else {
        const auto* const bits = reinterpret_cast<const uint8_t*>(chunk.masks[first + o].word);
        const auto kept = load_unaligned<Mask>(bits + i * sizeof(Mask));
        weights = Dot::expand(values[o], kept);
        values[o] += __builtin_popcount(kept);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) sum[r * kTurn + o] = Dot::add(sum[r * kTurn + o], weights, x + r * kWidth);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kTurn; ++i) sums[i] = sum[i];
}

struct Tile {
  const NMWeight& w;
  const void* x;
  int rows;
  int64_t last;
  float* y;
  int64_t ldy;
  int64_t kept_all = kept_count(w);
  int bits = index_bits(w);

  // Eight outputs from `output` on; those that are not there repeat the first.
  template <class Dot, int kRows>
  void run(int64_t output, Chunk& chunk) const {
    constexpr int kTurn = kRows < kOutputs ? kOutputs / kRows : 1, kTurns = kOutputs / kTurn;
    __m512 sums[kTurns][kRows * kTurn];
    for (auto& turn : sums) {
      for (auto& sum : turn) sum = _mm512_setzero_ps();
    }
    const auto* const rows_at = static_cast<const typename Dot::Input*>(x);
    const typename Dot::Places places;
    // Activations of a chunk stay in a first-level cache while eight outputs go over them.
    const int64_t longest = by_places(w) ? kMaskChunk / 4 : kMaskChunk;
    for (int64_t at = 0, k = w.k(); at < k; at += longest) {
      const int64_t count = k - at < longest ? k - at : longest;
      read_weights(output, at / w.m * w.n, count, chunk);
      for (int turn = 0; turn < kTurns; ++turn) {
        if (by_places(w)) {
          add_chunk<Dot, kByPlaces, kRows, kTurn>(rows_at + at * kRows, chunk, places, turn * kTurn, count, sums[turn]);
        } else {
          add_chunk<Dot, kByBits, kRows, kTurn>(rows_at + at * kRows, chunk, places, turn * kTurn, count, sums[turn]);
        }
      }
    }
    for (int turn = 0; turn < kTurns; ++turn) {
      alignas(32) float result[kRows * kTurn];
      for (int i = 0; i < kRows * kTurn; i += 8) {
        _mm256_store_ps(result + i, lane_sums(*reinterpret_cast<__m512(*)[8]>(sums[turn] + i)));
      }
      const int64_t first = output + turn * kTurn;
      for (int r = 0; r < kRows && r < rows; ++r) {
        for (int o = 0; o < kTurn && first + o < last; ++o) y[r * ldy + first + o] = result[r * kTurn + o];
      }
    }
  }

 private:
  void read_weights(int64_t output, int64_t before, int64_t count, Chunk& chunk) const {
    for (int o = 0; o < kOutputs; ++o) {
      const int64_t start = (output + o < last ? output + o : output) * kept_all + before;
      if (by_places(w)) {
        chunk.indices[o] = w.indices + start / 4;
      } else {
        chunk.masks[o].read(w, start * bits, count);
      }
      chunk.values[o] = static_cast<const uint8_t*>(w.values) + start * kNMTypeBytes[w.type];
      if (kNMTypeBytes[w.type] == 1) {
        decode_bf16(w, start, count / w.m * w.n, chunk.decoded[o]);
        chunk.values[o] = chunk.decoded[o];
      }
    }
  }
};

template <class Dot>
void run(const Tile& tile, int64_t first) {
  Chunk chunk;
  for (int64_t o = first; o < tile.last; o += kOutputs) {
    switch (tile_rows(tile.rows)) {
      case 1: tile.run<Dot, 1>(o, chunk); break;
      case 2: tile.run<Dot, 2>(o, chunk); break;
      case 4: tile.run<Dot, 4>(o, chunk); break;
      case 8: tile.run<Dot, 8>(o, chunk); break;
      default: tile.run<Dot, 16>(o, chunk);
    }
  }
}

void run(const NMWeight& w, const void* prepared, int type, int rows, int64_t first, int64_t last, float* y,
         int64_t ldy) {
  const Tile tile{w, prepared, rows, last, y, ldy};
  if (as_bf16(w, type)) return run<Bf16Dot>(tile, first);
  switch (w.type) {
    case kNMFloat32: return run<FloatDot<FloatValues>>(tile, first);
    case kNMFloat16: return run<FloatDot<HalfValues>>(tile, first);
    default: return run<FloatDot<Bf16Values>>(tile, first);
  }
}

#endif

}  // namespace

#if defined(__AVX512VBMI2__) && defined(__AVX512BF16__) && defined(__BMI2__)
extern const NMDenseKernel SNN_CONCAT(nm_dense_, SNN_ISA){takes, prepared_bytes, prepare, run};
#else
extern const NMDenseKernel SNN_CONCAT(nm_dense_, SNN_ISA){nullptr, nullptr, nullptr, nullptr};
#endif

}  // namespace snn_core
