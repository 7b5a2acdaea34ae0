// Row kernels of the LIF operator: some time steps of a run of neighbouring neurons, no allocation, no threads.
// Compiled once per instruction set (lif_forward_rows.cpp, lif_backward_rows.cpp); blocks.h picks a table.
#pragma once

#include <cstdint>

#include "lif/lif.h"
#include "native/row_tools.h"

namespace snn_core {

// `steps` rows of `n` contiguous elements; the row of step t is at `x + t * x_stride` elements of the storage type.
struct ForwardRows {
  const void* x;
  int64_t x_stride;
  void* out;  // spikes in the storage type of x, or h in float32, or spikes as bits (stride in bytes)
  int64_t out_stride;
  float* v;  // state of the n neurons: before the first step, then after the last
  int64_t n;
  int64_t steps;
  bool stream;  // `out` bypasses the caches
};

// Steps are walked from the last to the first.
struct BackwardRows {
  const void* gs;  // storage type; a stride of 0 reads one row again and again
  int64_t gs_stride;
  const float* h;
  int64_t h_stride;
  float* gv;  // gradient of v after the last step, then of v before the first
  void* gx;   // storage type
  int64_t gx_stride;
  int64_t n;
  int64_t steps;
  bool stream;
};

// The whole backward of sequences of kFusedSteps steps: h is recomputed into registers, for a charge without division.
constexpr int64_t kFusedSteps = 4;
struct FusedRows {
  const void* x;  // storage type, as gs and gx
  int64_t x_stride;
  const void* gs;
  int64_t gs_stride;
  const float* v;  // before the first step
  float* gv;       // gradient of v after the last step, then of v before the first
  void* gx;
  int64_t gx_stride;
  int64_t n;
  bool decay_input;
  bool stream;
};

using ForwardKernel = void (*)(const ForwardRows&, const LifParameters&);
using BackwardKernel = void (*)(const BackwardRows&, const LifParameters&);
using FusedKernel = void (*)(const FusedRows&, const LifParameters&);

struct LifForwardTable {
  using Variants = ForwardKernel[2][2][2];  // [decay_input][divide][soft_reset]
  Variants spikes[kStorageCount];
  Variants bits[kStorageCount];
  Variants history[kStorageCount];  // h, for the backward
};

struct LifBackwardTable {
  // [storage][surrogate][soft_reset][detach_reset]
  BackwardKernel kernel[kStorageCount][kSurrogateCount][2][2];
  FusedKernel fused[kStorageCount][kSurrogateCount][2][2];
};

#define SNN_DECLARE_TABLES(isa)                        \
  extern const LifForwardTable lif_forward_##isa;      \
  extern const LifBackwardTable lif_backward_##isa;

SNN_DECLARE_TABLES(baseline)
#if defined(SNN_HAS_AVX2)
SNN_DECLARE_TABLES(avx2)
#endif
#if defined(SNN_HAS_AVX512)
SNN_DECLARE_TABLES(avx512)
#endif
#undef SNN_DECLARE_TABLES

}  // namespace snn_core
