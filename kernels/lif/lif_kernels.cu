// The kernels of the LIF operator for one storage type, named by SNN_STORAGE (Float32, BFloat16, Float16) and
// SNN_TABLE (cuda_lif_float32, ...). Compiled once for each.
#include "lif/lif_kernels.cuh"

namespace snn_core {
namespace {

SNN_GLOBAL void sum_tau_terms(SNN_GRID_CONSTANT TauSumArguments a) {
  double sum = 0.0;
  for (int64_t i = global_thread(); i < a.count; i += kTauSums) sum += a.terms[i];
  a.sums[global_thread()] = sum;
}

SNN_GLOBAL void finish_tau_sum(SNN_GRID_CONSTANT TauSumArguments a) {
  double sum[8] = {};
  for (int first = 0; first < kTauSums; first += 8) {
    SNN_UNROLL
    for (int i = 0; i < 8; ++i) sum[i] += a.sums[first + i];
  }
  *a.result = static_cast<float>(((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7])));
}

constexpr int kForwardWidth = 16 / sizeof(SNN_STORAGE::Element);

CudaKernel<ForwardArguments> forward(bool wide) {
  return wide ? lif_forward_kernel<SNN_STORAGE, kForwardWidth> : lif_forward_kernel<SNN_STORAGE, 1>;
}

CudaKernel<PackedArguments> packed(bool wide) {
  return wide ? lif_packed_kernel<SNN_STORAGE, true> : lif_packed_kernel<SNN_STORAGE, false>;
}

template <int kSurrogate>
CudaKernel<BackwardArguments> wide_backward(bool brief) {
  return brief ? lif_backward_kernel<SNN_STORAGE, kBackwardWidth, kSurrogate, kShortChunk>
               : lif_backward_kernel<SNN_STORAGE, kBackwardWidth, kSurrogate, kBackwardChunk>;
}

CudaKernel<BackwardArguments> backward(int surrogate, bool wide, bool brief) {
  if (!wide) return lif_backward_kernel<SNN_STORAGE, 1, kAnySurrogate, kBackwardChunk>;
  switch (surrogate) {
    case kATan:
      return wide_backward<kATan>(brief);
    case kSigmoid:
      return wide_backward<kSigmoid>(brief);
    case kTriangle:
      return wide_backward<kTriangle>(brief);
    case kRectangle:
      return wide_backward<kRectangle>(brief);
    default:
      return wide_backward<kFastSigmoid>(brief);
  }
}

}  // namespace

extern const CudaLif SNN_TABLE = {kForwardWidth, forward, packed, backward, sum_tau_terms, finish_tau_sum};

}  // namespace snn_core
