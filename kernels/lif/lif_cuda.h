// What the translation units of the LIF operator on CUDA know of each other: kernels by storage, surrogate and shape.
// The backward has many bodies; each storage is compiled on its own (lif_backward.cu), so that compilers run side by
// side.
#pragma once

#include "lif/lif_kernels.cuh"

namespace snn_core {

using CudaBackward = void (*)(BackwardArguments);

constexpr int kBackwardWidth = 4;  // neurons a thread; more than 4 do not fit in registers

// `wide`: kBackwardWidth neurons a thread, else one. `brief`: at most kShortChunk steps.
CudaBackward cuda_backward_float32(int surrogate, bool wide, bool brief);
CudaBackward cuda_backward_bfloat16(int surrogate, bool wide, bool brief);
CudaBackward cuda_backward_float16(int surrogate, bool wide, bool brief);

}  // namespace snn_core
