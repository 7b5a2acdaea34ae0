// Device text of the matrix product on Hopper's tensor cores (wgmma.sp): tiles of 128 outputs x 128 rows, two warpgroups
// of 64 outputs each. As nm_gemm_kernels.cuh, but operands are read from shared memory by the tensor cores, one tile of
// K is multiplied while the next is prepared, and packed spikes are written out there, 128 bytes of K a row.
#pragma once

#include "nm_matmul/nm_gemm_kernels.cuh"
#include "nm_matmul/nm_warpgroup.cuh"

namespace snn_core {

template <class MmaType, bool kSpikeInput>
struct WarpgroupTile : GemmTile<MmaType, true, kSpikeInput, 128, kWarpgroupRows, 8, 1, 5> {
  using Base = GemmTile<MmaType, true, kSpikeInput, 128, kWarpgroupRows, 8, 1, 5>;
  // Spikes as the tensor cores read them: two buffers.
  static constexpr int kWrittenAt = Base::kStages * Base::kStageBytes;
  static constexpr int kWrittenBytes = kWarpgroupRows * 128;
  static constexpr int kNeeded = kWrittenAt + (kSpikeInput ? 2 * kWrittenBytes : 0);
  static constexpr int kSharedBytes = kNeeded > Base::kResultBytes ? kNeeded : Base::kResultBytes;
  // The swizzles count from multiples of 1024.
  static_assert(Base::kStageBytes % 1024 == 0 && Base::kInputAt % 1024 == 0 && kWrittenAt % 1024 == 0);
};

// The tile's spikes, 8 or 16 bytes a row, to 128 bytes a row: a thread does 16-byte units of one row.
template <class Tile>
SNN_DEVICE void write_spikes(const unsigned char* packed, unsigned char* written) {
  using Mma = typename Tile::Mma;
  constexpr int kPerWord = Mma::kWide ? 2 : 4;  // units of 16 bytes that a word of 32 spikes becomes
  SNN_UNROLL
  for (int i = 0; i < kWarpgroupRows * Tile::kInputBytes / 4 / Tile::kThreads; ++i) {
    const int index = i * Tile::kThreads + static_cast<int>(threadIdx.x);
    const int row = index / (Tile::kInputBytes / 4), word = index % (Tile::kInputBytes / 4);
    const uint32_t spikes = reinterpret_cast<const uint32_t*>(packed)[index];
    SNN_UNROLL
    for (int unit = 0; unit < kPerWord; ++unit) {
      // Register r of the row holds the bits that reordering has brought to place r of each byte or half.
      struct alignas(16) Unit {
        uint32_t reg[4];
      } out;
      SNN_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int r = unit * 4 + j;
        constexpr int kTop = __is_same(Mma, MmaInt8) ? 0 : Mma::kWide ? 6 : 14;
        out.reg[j] = (r <= kTop ? spikes << (kTop - r) : spikes >> (r - kTop)) & Mma::kSpikes;
      }
      *reinterpret_cast<Unit*>(written + swizzled<128>(row, word * kPerWord + unit)) = out;
    }
  }
}

template <class Tile, class Sum>
SNN_DEVICE void start_products(Sum (&sums)[kWarpgroupRows / 8][4], const unsigned char* stage,
                               const unsigned char* input, const uint32_t (&metadata)[2], int first_output) {
  using Mma = typename Tile::Mma;
  const uint64_t a = operand_descriptor(stage + first_output * Tile::kValueBytes, Tile::kValueBytes);
  const uint64_t b = operand_descriptor(input, 128);
  begin_products();
  multiply_async<Mma, 0>(sums, a, b, metadata[0]);
  multiply_async<Mma, Mma::kWide ? 0 : 1>(sums, a + (32 >> 4), b + (64 >> 4), metadata[1]);
  commit_products();
}

// Tile `tile` of K, whose operands are in `here`. `next` goes where the tile before the last was. Products of the last
// tile may still be under way.
template <class Tile, class Sum>
SNN_DEVICE void warpgroup_step(const GemmArguments& a, const GemmPlace& place, int tile, unsigned char* shared,
                               Sum (&sums)[kWarpgroupRows / 8][4], uint32_t (&metadata)[2], unsigned char* written) {
  const int warpgroup = static_cast<int>(threadIdx.x) / kWarpgroup;
  const int count = tile - place.first;
  unsigned char* const here = shared + count % Tile::kStages * Tile::kStageBytes;
  wait_for_copies<Tile::kStages - 3>();
  show_to_tensor_cores();
  wait_for_products<1>();  // of the tile before the last: its buffers are free
  block_barrier();
  const int next = tile + Tile::kStages - 2;
  if (next < place.last) {
    load_tile<Tile>(a, place, next, shared + (count + Tile::kStages - 2) % Tile::kStages * Tile::kStageBytes);
  }
  commit_copies();
  const unsigned char* input = here + Tile::kInputAt;
  if constexpr (Tile::kSpikes) {
    write_spikes<Tile>(input, written);
    show_to_tensor_cores();
    block_barrier();
    input = written;
  }
  load_metadata<Tile>(metadata, here + Tile::kIndexAt, warp_of_block() * 16);
  start_products<Tile>(sums, here, input, metadata, warpgroup * 64);
}

template <class Tile>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(Tile::kThreads, 1) nm_warpgroup_kernel(SNN_GRID_CONSTANT GemmArguments a) {
  unsigned char* const shared = shared_memory();
  const int across = (a.outputs + Tile::kOutputs - 1) / Tile::kOutputs;
  const int64_t tiles = (a.rows + Tile::kRows - 1) / Tile::kRows * across * a.splits;
  SNN_NO_UNROLL
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const GemmPlace place(a, index, Tile::kOutputs, Tile::kRows);
    typename Tile::Mma::Sum sums[1][kWarpgroupRows / 8][4] = {};
    SNN_UNROLL
    for (int s = 0; s < Tile::kStages - 2; ++s) {
      if (place.first + s < place.last) load_tile<Tile>(a, place, place.first + s, shared + s * Tile::kStageBytes);
      commit_copies();
    }
    // Two tiles a round: registers of the one that is under way must not change.
    uint32_t even[2], odd[2];
    SNN_NO_UNROLL
    for (int tile = place.first; tile < place.last; tile += 2) {
      unsigned char* const written = shared + Tile::kWrittenAt;
      warpgroup_step<Tile>(a, place, tile, shared, sums[0], even, written);
      if (tile + 1 < place.last) {
        warpgroup_step<Tile>(a, place, tile + 1, shared, sums[0], odd, written + Tile::kWrittenBytes);
      }
    }
    wait_for_copies<0>();
    wait_for_products<0>();
    block_barrier();
    auto* const result = reinterpret_cast<float*>(shared);
    stage_result<Tile>(result, sums, warp_of_block() * 16, 0);
    block_barrier();
    write_result<Tile>(a, place, result);
    block_barrier();
  }
}

}  // namespace snn_core
