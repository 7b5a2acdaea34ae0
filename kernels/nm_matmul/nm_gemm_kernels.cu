// The matrix products of one type, named by SNN_MMA (MmaBFloat16, ...) and SNN_TABLE (cuda_gemm_bfloat16, ...).
// Compiled once for each.
#include "nm_matmul/nm_gemm_kernels.cuh"
#include "nm_matmul/nm_cuda.h"

namespace snn_core {
namespace {

template <class Tile>
GemmKernel entry() {
  return {nm_gemm_kernel<Tile>, Tile::kOutputs, Tile::kRows, Tile::kThreads, Tile::kSharedBytes};
}

// For few rows little is computed, and what counts is how many bytes of the weight are on their way at a time.
template <bool kSparse, bool kSpikes>
GemmKernel of_rows(int64_t rows) {
  if (rows <= 16) return entry<GemmTile<SNN_MMA, kSparse, kSpikes, 64, 16, 4, 1, 6>>();
  if (rows <= 64) return entry<GemmTile<SNN_MMA, kSparse, kSpikes, 64, 64, 2, 2, 4>>();
  return entry<GemmTile<SNN_MMA, kSparse, kSpikes, 128, 128, 2, 4, kSparse ? 4 : 3>>();
}

}  // namespace

GemmKernel SNN_TABLE(bool sparse, bool spikes, int64_t rows) {
  if (spikes) return sparse ? of_rows<true, true>(rows) : of_rows<false, true>(rows);
  if constexpr (!SNN_MMA::kWide) return sparse ? of_rows<true, false>(rows) : of_rows<false, false>(rows);
  return {};
}

}  // namespace snn_core
