// What lif.cu and lif_kernels.cu share: arguments of the kernels, and tables of them. Kernels are compiled without
// torch's headers, one storage type at a time, so that the compilers are quick and run side by side.
#pragma once

#include <cstdint>

#include "lif/lif.h"
#include "native/device_geometry.h"

namespace snn_core {

constexpr int kForwardThreads = 128;
constexpr int kForwardChunk = 8;
constexpr int kPackedChunk = 4;
constexpr int kBackwardThreads = 128;
constexpr int kBackwardChunk = 16;  // steps whose h stays in registers; also the distance of the checkpoints
constexpr int kShortChunk = 4;      // the same for sequences that are no longer, with more threads at a time
constexpr int kGradientChunk = 8;   // steps whose grad_s is loaded ahead
constexpr int kBackwardWidth = 4;   // neurons a thread; more than 4 do not fit in registers
// Of a backward with a gradient of 1 / tau, whose sum depends on which thread has which neurons: most blocks, and how
// many multiprocessors the width is chosen for. Fixed, so that the sum does not depend on the GPU's size.
constexpr int kTauBlocks = 512;
constexpr int kTauMultiprocessors = 128;
constexpr int kTauSums = 256;

// One tensor of a kernel: [T, ...] or, with time_stride 0, [...]. Null where absent.
struct DeviceOperand {
  void* data = nullptr;
  int64_t time_stride = 0;
  bool broadcast = false;  // the neurons of one thread share one element
};

struct NeuronArguments {
  int steps;
  LifParameters p;
  LifVariant variant;
  const float* reciprocal_tau;  // learned; null where p has it
};

struct ForwardArguments {
  enum { kX, kS, kVSeq, kV0, kVLast, kCheckpoints, kCount };
  NeuronArguments neuron;
  int checkpoint_every;
  DeviceOperand operand[kCount];
  DeviceGeometry<kCount> geometry;
};

struct BackwardArguments {
  enum { kX, kGradX, kGradS, kGradVSeq, kV0, kGradVLast, kGradV0, kCheckpoints, kCount };
  NeuronArguments neuron;
  DeviceOperand operand[kCount];
  double* tau_sums;    // one a thread; null without a gradient of 1 / tau,
  float* tau_result;   // which is then written as 0 here
  DeviceGeometry<kCount> geometry;
};

struct PackedArguments {
  // Operands walk bytes of eight neurons along the packed dimension; kPosition counts the neurons before a byte.
  enum { kX, kPacked, kV0, kVLast, kPosition, kCount };
  NeuronArguments neuron;
  int64_t size;                 // of the packed dimension
  int64_t lane_stride[kCount];  // between the neurons of a byte
  DeviceOperand operand[kCount];
  DeviceGeometry<kCount> geometry;
};

struct TauSumArguments {
  const double* terms;
  int64_t count;
  double* sums;  // kTauSums
  float* result;
};

template <class Arguments>
using CudaKernel = void (*)(Arguments);

// The kernels of one storage type. `wide`: accesses of several neurons at once, else any strides.
struct CudaLif {
  int forward_width;  // neurons a thread of the wide forward
  CudaKernel<ForwardArguments> (*forward)(bool wide);
  CudaKernel<PackedArguments> (*packed)(bool wide);
  CudaKernel<BackwardArguments> (*backward)(int surrogate, bool wide, bool brief);  // brief: at most kShortChunk steps
  // The two stages of a sum in a fixed order: kTauSums threads, then one.
  CudaKernel<TauSumArguments> sum_tau_terms, finish_tau_sum;
};

extern const CudaLif cuda_lif_float32, cuda_lif_bfloat16, cuda_lif_float16;

}  // namespace snn_core
