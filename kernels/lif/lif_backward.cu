// Bodies of the backward on CUDA for one storage type, named by SNN_STORAGE (Float32, BFloat16, Float16) and
// SNN_STORAGE_FUNCTION (float32, ...). Compiled once for each.
#include "lif/lif_cuda.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

template <int kSurrogate>
CudaBackward body(bool brief) {
  return brief ? lif_backward_kernel<SNN_STORAGE, kBackwardWidth, kSurrogate, kShortChunk>
               : lif_backward_kernel<SNN_STORAGE, kBackwardWidth, kSurrogate, kBackwardChunk>;
}

}  // namespace

CudaBackward SNN_CONCAT(cuda_backward_, SNN_STORAGE_FUNCTION)(int surrogate, bool wide, bool brief) {
  if (!wide) return lif_backward_kernel<SNN_STORAGE, 1, kAnySurrogate, kBackwardChunk>;
  switch (surrogate) {
    case kATan:
      return body<kATan>(brief);
    case kSigmoid:
      return body<kSigmoid>(brief);
    case kTriangle:
      return body<kTriangle>(brief);
    case kRectangle:
      return body<kRectangle>(brief);
    default:
      return body<kFastSigmoid>(brief);
  }
}

}  // namespace snn_core
