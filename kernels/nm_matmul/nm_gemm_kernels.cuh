// Device text of the matrix product on tensor cores, by warps (mma.sp, sm_80 and later): weight [outputs, K], 2:4
// compressed or dense, times rows of x or of packed spikes.
//
// A block makes tiles of kOutputs x kRows sums, one after the other. Tiles of the operands (128 bytes of dense K) pass
// through kStages buffers of shared memory, copied while earlier ones are multiplied. Compressed values, 2-bit indices
// and packed spikes stay what they are up to the registers: the indices of CompressedNM are the metadata of mma.sp
// (nm_fragments.cuh), and a register of spikes is a shift and a mask.
#pragma once

#include "nm_matmul/nm_elements.cuh"
#include "nm_matmul/nm_fragments.cuh"

namespace snn_core {

template <class MmaType, bool kSparseWeight, bool kSpikeInput, int kOutputsOf, int kRowsOf, int kWarpsOutputs,
          int kWarpsRows, int kStagesOf>
struct GemmTile {
  using Mma = MmaType;
  static constexpr bool kSparse = kSparseWeight, kSpikes = kSpikeInput;
  static constexpr int kOutputs = kOutputsOf, kRows = kRowsOf, kStages = kStagesOf;
  static constexpr int kThreads = kWarpsOutputs * kWarpsRows * kWarp;
  static constexpr int kWarpsAcross = kWarpsRows;
  static constexpr int kM = kOutputs / kWarpsOutputs / 16, kN = kRows / kWarpsRows / 8;  // instructions of a warp

  // Bytes of a row in a tile.
  static constexpr int kValueBytes = kSparse ? 64 : 128;
  static constexpr int kIndexBytes = kSparse ? (Mma::kWide ? 16 : 8) : 0;
  static constexpr int kInputBytes = kSpikes ? (Mma::kWide ? 16 : 8) : 128;
  static constexpr int kInputAt = kOutputs * kValueBytes;
  static constexpr int kIndexAt = kInputAt + kRows * kInputBytes;
  static constexpr int kStageBytes = kIndexAt + kOutputs * kIndexBytes;
  static constexpr int kResultStride = kOutputs + 4;  // floats; the 4 keep a warp's stores on different banks
  static constexpr int kResultBytes = kRows * kResultStride * 4;
  static constexpr int kSharedBytes =
      kStages * kStageBytes > kResultBytes ? kStages * kStageBytes : kResultBytes;
  static_assert(kStageBytes % 16 == 0 && kInputAt % 16 == 0 && kIndexAt % 16 == 0);
};

// Place of 16-byte unit `unit` of a row: permuted, so that the eight rows that ldmatrix reads are on different banks.
template <int kBytes>
SNN_DEVICE int swizzled(int row, int unit) {
  if constexpr (kBytes == 128) return row * 128 + (unit ^ (row & 7)) * 16;
  return row * 64 + (unit ^ (row >> 1 & 3)) * 16;
}

// Copies `kRows` rows of kBytes from row `first` on; rows past the last repeat it, and what comes of them is not
// stored. 64 and 128 bytes a row are swizzled, 8 and 16 lie one after the other.
template <int kRows, int kBytes, int kThreads>
SNN_DEVICE void copy_rows(unsigned char* shared, const unsigned char* global, int64_t stride, int64_t first,
                          int64_t count) {
  constexpr int kUnit = kBytes < 16 ? kBytes : 16, kUnits = kBytes / kUnit;
  constexpr int kTotal = kRows * kUnits;
  SNN_UNROLL
  for (int i = 0; i < (kTotal + kThreads - 1) / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x);
    if (kTotal % kThreads != 0 && at >= kTotal) break;
    const int row = at / kUnits, unit = at % kUnits;
    const int64_t source = first + row < count ? first + row : count - 1;
    const int place = kBytes >= 64 ? swizzled<kBytes>(row, unit) : row * kBytes + unit * kUnit;
    copy_async<kUnit>(shared + place, global + source * stride + unit * kUnit);
  }
}

// One tile of the result: where it begins, and its piece of K.
struct GemmPlace {
  int output;
  int64_t row;
  int split, first, last;  // tiles of K

  // Tiles of the same rows follow each other, so that their input is still in the cache.
  SNN_DEVICE GemmPlace(const GemmArguments& a, int64_t index, int tile_outputs, int tile_rows) {
    const int across = (a.outputs + tile_outputs - 1) / tile_outputs;
    const int64_t rest = index / a.splits;
    split = static_cast<int>(index - rest * a.splits);
    const int64_t band = rest / across;
    output = static_cast<int>(rest - band * across) * tile_outputs;
    row = band * tile_rows;
    const int64_t tiles = static_cast<int64_t>(a.planes) * a.k_tiles;
    first = static_cast<int>(split * tiles / a.splits);
    last = static_cast<int>((split + 1) * tiles / a.splits);
  }
};

template <class Tile>
SNN_DEVICE void load_tile(const GemmArguments& a, const GemmPlace& place, int tile, unsigned char* stage) {
  const int64_t k = tile % a.k_tiles;  // planes share indices and input
  copy_rows<Tile::kOutputs, Tile::kValueBytes, Tile::kThreads>(
      stage, a.values + static_cast<int64_t>(tile) * Tile::kValueBytes, a.value_stride, place.output, a.outputs);
  copy_rows<Tile::kRows, Tile::kInputBytes, Tile::kThreads>(
      stage + Tile::kInputAt, a.input + k * Tile::kInputBytes, a.input_stride, place.row, a.rows);
  if constexpr (Tile::kSparse) {
    copy_rows<Tile::kOutputs, Tile::kIndexBytes, Tile::kThreads>(
        stage + Tile::kIndexAt, a.indices + k * Tile::kIndexBytes, a.index_stride, place.output, a.outputs);
  }
}

// Metadata of 16 outputs from `output` of the tile on, for the whole tile of K: one register (16-bit: selector 0 is the
// first half of the tile and 1 the second) or one for each half (8-bit).
template <class Tile>
SNN_DEVICE void load_metadata(uint32_t (&metadata)[2], const unsigned char* indices, int output) {
  const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
  if constexpr (Tile::Mma::kWide) {
    const auto* words = reinterpret_cast<const uint32_t*>(indices + (output + g + 8 * (t & 1)) * Tile::kIndexBytes);
    metadata[0] = words[t >> 1];
    metadata[1] = words[2 + (t >> 1)];
  } else {
    const auto* lower = reinterpret_cast<const uint16_t*>(indices + (output + g) * Tile::kIndexBytes);
    const auto* upper = reinterpret_cast<const uint16_t*>(indices + (output + g + 8) * Tile::kIndexBytes);
    metadata[0] = metadata[1] = lower[t] | static_cast<uint32_t>(upper[t]) << 16;
  }
}

// Half `kHalf` of the tile of K.
template <class Tile, int kHalf, class Sum>
SNN_DEVICE void multiply_half(Sum (&sums)[Tile::kM][Tile::kN][4], const unsigned char* stage, int output, int row,
                              const uint32_t (&metadata)[Tile::kM][2]) {
  using Mma = typename Tile::Mma;
  const int lane = lane_of_warp();
  const unsigned char* const input = stage + Tile::kInputAt;
  Fragment b[Tile::kN];
  SNN_UNROLL
  for (int n = 0; n < Tile::kN; ++n) {
    if constexpr (Tile::kSpikes) {
      constexpr int kWords = Tile::kInputBytes / 8;
      b[n] = spike_fragment<Mma>(reinterpret_cast<const uint32_t*>(input + (row + n * 8 + lane / 4) * Tile::kInputBytes) +
                                 kHalf * kWords);
    } else {
      b[n] = load_matrices(input + swizzled<128>(row + n * 8 + lane % 8, kHalf * 4 + lane / 8));
    }
  }
  SNN_UNROLL
  for (int m = 0; m < Tile::kM; ++m) {
    const int a_row = output + m * 16 + lane % 16;
    if constexpr (Tile::kSparse) {
      const Fragment a = load_matrices(stage + swizzled<64>(a_row, kHalf * 2 + lane / 16));
      SNN_UNROLL
      for (int n = 0; n < Tile::kN; ++n) {
        mma_sparse<Mma, Mma::kWide ? 0 : kHalf>(sums[m][n], a, b[n], metadata[m][kHalf]);
      }
    } else {
      SNN_UNROLL
      for (int step = 0; step < 2; ++step) {
        const Fragment a = load_matrices(stage + swizzled<128>(a_row, kHalf * 4 + step * 2 + lane / 16));
        SNN_UNROLL
        for (int n = 0; n < Tile::kN; ++n) {
          mma_dense<Mma>(sums[m][n], a, b[n].reg[2 * step], b[n].reg[2 * step + 1]);
        }
      }
    }
  }
}

// Sums to shared memory as [rows, outputs] of float32.
template <class Tile, class Sum>
SNN_DEVICE void stage_result(float* result, const Sum (&sums)[Tile::kM][Tile::kN][4], int output, int row) {
  const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
  SNN_UNROLL
  for (int m = 0; m < Tile::kM; ++m) {
    SNN_UNROLL
    for (int n = 0; n < Tile::kN; ++n) {
      SNN_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int at = (row + n * 8 + 2 * t + i % 2) * Tile::kResultStride + output + m * 16 + g + i / 2 * 8;
        result[at] = static_cast<float>(sums[m][n][i]);
      }
    }
  }
}

struct alignas(16) FourFloats {
  float value[4];
};
struct alignas(8) TwoWords {
  uint32_t word[2];
};

SNN_DEVICE void store_four(void* out, int64_t at, int type, const float (&v)[4]) {
  if (type == kCudaFloat32) {
    check_aligned(static_cast<float*>(out) + at, 16);
    *reinterpret_cast<FourFloats*>(static_cast<float*>(out) + at) = {{v[0], v[1], v[2], v[3]}};
    return;
  }
  auto* const target = reinterpret_cast<TwoWords*>(static_cast<uint16_t*>(out) + at);
  check_aligned(target, 8);
  if (type == kCudaBFloat16) {
    *target = {{BFloat16::pack(v[0], v[1]), BFloat16::pack(v[2], v[3])}};
  } else {
    *target = {{Float16::pack(v[0], v[1]), Float16::pack(v[2], v[3])}};
  }
}

// From shared memory to the result, four outputs a thread, a row's one after the other.
template <class Tile>
SNN_DEVICE void write_result(const GemmArguments& a, const GemmPlace& place, const float* result) {
  const bool partial = a.splits > 1;
  float* const sums = static_cast<float*>(a.out) + (partial ? place.split * a.rows * a.outputs : 0);
  void* const out = partial ? static_cast<void*>(sums) : a.out;
  const int64_t stride = partial ? a.outputs : a.out_stride;
  const int type = partial ? static_cast<int>(kCudaFloat32) : a.out_type;
  // Whether four neighbours are one access: all rows and the start are aligned to it.
  const bool wide = stride % 4 == 0 && reinterpret_cast<uintptr_t>(out) % (type == kCudaFloat32 ? 16 : 8) == 0;
  constexpr int kGroups = Tile::kOutputs / 4;
  SNN_NO_UNROLL
  for (int i = static_cast<int>(threadIdx.x); i < kGroups * Tile::kRows; i += Tile::kThreads) {
    const int row = i / kGroups, group = i % kGroups;
    const int output = place.output + group * 4;
    if (place.row + row >= a.rows || output >= a.outputs) continue;
    const FourFloats four = *reinterpret_cast<const FourFloats*>(result + row * Tile::kResultStride + group * 4);
    float v[4];
    SNN_UNROLL
    for (int c = 0; c < 4; ++c) {
      v[c] = four.value[c];
      if (partial || output + c >= a.outputs) continue;
      v[c] *= a.factor;
      if (a.scale != nullptr) v[c] *= a.scale[output + c];
      if (a.bias != nullptr) v[c] += a.bias[output + c];
    }
    const int64_t at = (place.row + row) * stride + output;
    if (wide && output + 4 <= a.outputs) {
      store_four(out, at, type, v);
    } else {
      SNN_UNROLL
      for (int c = 0; c < 4; ++c) {
        if (output + c < a.outputs) write_element(out, at + c, type, v[c]);
      }
    }
  }
}

template <class Tile>
SNN_DEVICE void make_tile(const GemmArguments& a, const GemmPlace& place, unsigned char* shared) {
  using Sum = typename Tile::Mma::Sum;
  const int output = warp_of_block() / Tile::kWarpsAcross * (Tile::kM * 16);
  const int row = warp_of_block() % Tile::kWarpsAcross * (Tile::kN * 8);
  Sum sums[Tile::kM][Tile::kN][4] = {};
  SNN_UNROLL
  for (int s = 0; s < Tile::kStages - 1; ++s) {
    if (place.first + s < place.last) load_tile<Tile>(a, place, place.first + s, shared + s * Tile::kStageBytes);
    commit_copies();  // an empty group where there is no tile, so that counting groups counts tiles
  }
  int stage = 0, target = Tile::kStages - 1;
  SNN_NO_UNROLL
  for (int tile = place.first; tile < place.last; ++tile) {
    wait_for_copies<Tile::kStages - 2>();
    block_barrier();  // the tile is there for all, and the one before it is read by all
    const int next = tile + Tile::kStages - 1;
    if (next < place.last) load_tile<Tile>(a, place, next, shared + target * Tile::kStageBytes);
    commit_copies();
    const unsigned char* const here = shared + stage * Tile::kStageBytes;
    uint32_t metadata[Tile::kM][2] = {};
    if constexpr (Tile::kSparse) {
      SNN_UNROLL
      for (int m = 0; m < Tile::kM; ++m) load_metadata<Tile>(metadata[m], here + Tile::kIndexAt, output + m * 16);
    }
    multiply_half<Tile, 0>(sums, here, output, row, metadata);
    multiply_half<Tile, 1>(sums, here, output, row, metadata);
    target = stage;
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
  }
  wait_for_copies<0>();
  block_barrier();
  auto* const result = reinterpret_cast<float*>(shared);
  stage_result<Tile>(result, sums, output, row);
  block_barrier();
  write_result<Tile>(a, place, result);
  block_barrier();
}

template <class Tile>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(Tile::kThreads, 1) nm_gemm_kernel(SNN_GRID_CONSTANT GemmArguments a) {
  const int across = (a.outputs + Tile::kOutputs - 1) / Tile::kOutputs;
  const int64_t tiles = (a.rows + Tile::kRows - 1) / Tile::kRows * across * a.splits;
  SNN_NO_UNROLL
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    make_tile<Tile>(a, GemmPlace(a, index, Tile::kOutputs, Tile::kRows), shared_memory());
  }
}

}  // namespace snn_core
