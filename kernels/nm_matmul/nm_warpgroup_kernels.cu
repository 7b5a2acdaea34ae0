// The products by wgmma.sp, for sm_90a alone: compiled for no other GPU and never launched on one (nm_cuda_spikes.h).
#include "nm_matmul/nm_warpgroup_kernels.cuh"

namespace snn_core {
namespace {

template <class Mma, bool kSpikes>
GemmKernel entry() {
  using Tile = WarpgroupTile<Mma, kSpikes>;
  return {nm_warpgroup_kernel<Tile>, Tile::kOutputs, Tile::kRows, Tile::kThreads, Tile::kSharedBytes};
}

}  // namespace

GemmKernel cuda_warpgroup(int type, bool spikes) {
  switch (type) {
    case kCudaBFloat16:
      return spikes ? entry<MmaBFloat16, true>() : entry<MmaBFloat16, false>();
    case kCudaFloat16:
      return spikes ? entry<MmaFloat16, true>() : entry<MmaFloat16, false>();
    case kCudaInt8:
      return spikes ? entry<MmaInt8, true>() : GemmKernel{};
    case kCudaFloat8:
      return spikes ? entry<MmaFloat8, true>() : GemmKernel{};
    default:
      return {};
  }
}

}  // namespace snn_core
