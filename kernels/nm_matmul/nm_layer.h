// A whole layer on the event path: spikes, sums and neurons of a position in registers, through all time steps.
//
// For what the engine does in three passes (lists of spikes, sums, neurons) a layer with few outputs has little work
// in each: half of its time went into writing and reading what lies between them.
#pragma once

#include <cstdint>

#include "lif/lif.h"
#include "nm_matmul/nm_engine.h"

namespace snn_core {

constexpr int64_t kLayerSteps = 8;  // whose spikes are listed at once

// Positions of an output row of one sample, and the outputs of a panel.
struct NMLayerRow {
  const void* panel;     // bfloat16, all inputs
  int pairs;
  const uint8_t* image;  // bits under the first window at the first step
  int64_t step_bytes, position_bytes, line_bytes;  // to the next step, position, row of the window
  int64_t lines, run_bytes;                        // rows of a window; bytes of each, all of them inputs
  int64_t positions, steps;
  const float *scale, *bias;  // of the panel's outputs, or null
  uint8_t* bits;
  int64_t bits_step, outputs;  // bytes between steps; outputs of a position
  const float* v0;             // [positions, outputs], or null: v_reset
  float* v;                    // after the last step
  uint16_t* list;              // scratch: kLayerSteps * inputs + kSpikeSlack
};

using NMLayerKernel = void (*)(const NMLayerRow&, const LifParameters&, const LifVariant&);

#define SNN_DECLARE_LAYER(isa) extern const NMLayerKernel nm_layer_##isa;
SNN_DECLARE_LAYER(baseline)
#if defined(SNN_HAS_AVX2)
SNN_DECLARE_LAYER(avx2)
#endif
#if defined(SNN_HAS_AVX512)
SNN_DECLARE_LAYER(avx512)
#endif
#if defined(SNN_HAS_AVX512_VBMI)
SNN_DECLARE_LAYER(avx512_vbmi)
#endif
#undef SNN_DECLARE_LAYER

// Where the spikes and potentials of a layer go, contiguous: bits [T * S, OH, OW, O / 8], v [S, OH, OW, O].
struct NMLayerResult {
  const LifParameters& neuron;
  const LifVariant& variant;
  const float* v0;
  float* v_last;
  uint8_t* bits;
};

// Whether this way is open to the layer (problem.path is the event path); the results are the engine's, bit for bit.
bool nm_takes_layer(const NMProblem& problem);
void nm_run_layer(const NMProblem& problem, const NMLayerResult& result);

}  // namespace snn_core
