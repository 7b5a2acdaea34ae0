// Row kernels of the LIF operator: one time step of a block of neurons, contiguous float32, no allocation, no threads.
// Compiled once per instruction set (lif_rows.cpp); lif.cpp picks a table at run time.
#pragma once

#include <cstdint>

#include "lif/lif.h"

namespace snn_core {

// Neuron variants that select a compiled body.
struct LifVariant {
  bool decay_input;
  bool divide;
  bool soft_reset;
  bool detach_reset;
  int surrogate;
};

// h = charge(x, v); v = reset(h); s = spike (may be null); h_out = h (may be null).
// x_next is the row that comes next in time, prefetched while this one is worked on (may be null).
using ForwardRow = void (*)(const float* x, const float* x_next, float* v, float* s, float* h_out, int64_t n,
                            const LifParameters& p);
// gh_out = gradient of h; gx = gh * input_scale; gv in: gradient of v[t], out: of v[t-1]. gs may be null (zeros).
// gh_out may be null.
using BackwardRow = void (*)(const float* gs, const float* gs_next, const float* h, float* gv, float* gx,
                             float* gh_out, int64_t n, const LifParameters& p);

struct LifRows {
  ForwardRow forward[2][2][2];                      // [decay_input][divide][soft_reset]
  BackwardRow backward[kSurrogateCount][2][2];      // [surrogate][soft_reset][detach_reset]
  void (*bf16_to_float)(const uint16_t* source, float* target, int64_t n);
  void (*float_to_bf16)(const float* source, uint16_t* target, int64_t n);
  void (*add)(const float* source, float* target, int64_t n);
};

extern const LifRows lif_rows_baseline;
#if defined(SNN_HAS_AVX2)
extern const LifRows lif_rows_avx2;
#endif
#if defined(SNN_HAS_AVX512)
extern const LifRows lif_rows_avx512;
#endif

}  // namespace snn_core
