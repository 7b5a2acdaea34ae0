// Bodies of the row kernels. Plain loops that the compiler vectorises for the instruction set named by SNN_ISA.
// No standard library here: an inline function compiled for AVX-512 must never be the copy the linker keeps for all.

#include "lif/lif_rows.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

// Elements between prefetches: 256 bytes of each row.
constexpr int64_t kStrip = 64;

SNN_INLINE void prefetch_strip(const float* row, int64_t i) {
  if (row == nullptr) return;
  for (int64_t line = 0; line < kStrip; line += 16) __builtin_prefetch(row + i + line);
}

template <bool kDecayInput, bool kDivide, bool kSoftReset, bool kSpikes, bool kKeepH>
SNN_INLINE void forward_span(const float* __restrict x, float* __restrict v, float* __restrict s,
                             float* __restrict h_out, int64_t n, const LifParameters& p) {
  for (int64_t i = 0; i < n; ++i) {
    const float h = lif_charge<kDecayInput, kDivide>(x[i], v[i], p);
    if (kSpikes) s[i] = h >= p.v_threshold ? 1.0f : 0.0f;
    if (kKeepH) h_out[i] = h;
    v[i] = lif_reset<kSoftReset>(h, p);
  }
}

template <bool kDecayInput, bool kDivide, bool kSoftReset, bool kSpikes, bool kKeepH>
SNN_INLINE void forward_strips(const float* x, const float* x_next, float* v, float* s, float* h_out, int64_t n,
                               LifParameters p) {
  int64_t i = 0;
  for (; i + kStrip <= n; i += kStrip) {
    prefetch_strip(x_next, i);
    forward_span<kDecayInput, kDivide, kSoftReset, kSpikes, kKeepH>(x + i, v + i, s + i, h_out + i, kStrip, p);
  }
  forward_span<kDecayInput, kDivide, kSoftReset, kSpikes, kKeepH>(x + i, v + i, s + i, h_out + i, n - i, p);
}

template <bool kDecayInput, bool kDivide, bool kSoftReset>
void forward_row(const float* x, const float* x_next, float* v, float* s, float* h_out, int64_t n,
                 const LifParameters& p) {
  if (s != nullptr) {
    forward_strips<kDecayInput, kDivide, kSoftReset, true, false>(x, x_next, v, s, s, n, p);
  } else if (h_out != nullptr) {
    forward_strips<kDecayInput, kDivide, kSoftReset, false, true>(x, x_next, v, h_out, h_out, n, p);
  } else {
    forward_strips<kDecayInput, kDivide, kSoftReset, false, false>(x, x_next, v, v, v, n, p);
  }
}

template <int kSurrogate, bool kSoftReset, bool kDetachReset, bool kSpikeGradient, bool kKeepGh>
SNN_INLINE void backward_span(const float* __restrict gs, const float* __restrict h, float* __restrict gv,
                              float* __restrict gx, float* __restrict gh_out, int64_t n, const LifParameters& p) {
  for (int64_t i = 0; i < n; ++i) {
    float carry = gv[i];
    const float gh = lif_step_backward<kSurrogate, kSoftReset, kDetachReset>(kSpikeGradient ? gs[i] : 0.0f, h[i],
                                                                             carry, p);
    gv[i] = carry;
    gx[i] = gh * p.input_scale;
    if (kKeepGh) gh_out[i] = gh;
  }
}

template <int kSurrogate, bool kSoftReset, bool kDetachReset, bool kSpikeGradient, bool kKeepGh>
SNN_INLINE void backward_strips(const float* gs, const float* gs_next, const float* h, float* gv, float* gx,
                                float* gh_out, int64_t n, LifParameters p) {
  int64_t i = 0;
  for (; i + kStrip <= n; i += kStrip) {
    prefetch_strip(gs_next, i);
    backward_span<kSurrogate, kSoftReset, kDetachReset, kSpikeGradient, kKeepGh>(gs + i, h + i, gv + i, gx + i,
                                                                                 gh_out + i, kStrip, p);
  }
  backward_span<kSurrogate, kSoftReset, kDetachReset, kSpikeGradient, kKeepGh>(gs + i, h + i, gv + i, gx + i,
                                                                               gh_out + i, n - i, p);
}

template <int kSurrogate, bool kSoftReset, bool kDetachReset>
void backward_row(const float* gs, const float* gs_next, const float* h, float* gv, float* gx, float* gh_out,
                  int64_t n, const LifParameters& p) {
  constexpr int S = kSurrogate;
  if (gs != nullptr && gh_out == nullptr) {
    backward_strips<S, kSoftReset, kDetachReset, true, false>(gs, gs_next, h, gv, gx, gx, n, p);
  } else if (gs != nullptr) {
    backward_strips<S, kSoftReset, kDetachReset, true, true>(gs, gs_next, h, gv, gx, gh_out, n, p);
  } else if (gh_out == nullptr) {
    backward_strips<S, kSoftReset, kDetachReset, false, false>(h, gs_next, h, gv, gx, gx, n, p);
  } else {
    backward_strips<S, kSoftReset, kDetachReset, false, true>(h, gs_next, h, gv, gx, gh_out, n, p);
  }
}

void bf16_to_float(const uint16_t* __restrict source, float* __restrict target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) target[i] = __builtin_bit_cast(float, static_cast<uint32_t>(source[i]) << 16);
}

// Round to nearest even; NaN stays NaN.
void float_to_bf16(const float* __restrict source, uint16_t* __restrict target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, source[i]);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t quiet_nan = (bits >> 16) | 0x40u;
    target[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
  }
}

void add(const float* __restrict source, float* __restrict target, int64_t n) {
  for (int64_t i = 0; i < n; ++i) target[i] += source[i];
}

}  // namespace

#define SNN_SURROGATE(S)                                                        \
  {                                                                             \
    {backward_row<S, false, false>, backward_row<S, false, true>}, {            \
      backward_row<S, true, false>, backward_row<S, true, true>                 \
    }                                                                           \
  }

extern const LifRows SNN_CONCAT(lif_rows_, SNN_ISA) = {
    {{{forward_row<false, false, false>, forward_row<false, false, true>},
      {forward_row<false, true, false>, forward_row<false, true, true>}},
     {{forward_row<true, false, false>, forward_row<true, false, true>},
      {forward_row<true, true, false>, forward_row<true, true, true>}}},
    {SNN_SURROGATE(kATan), SNN_SURROGATE(kSigmoid), SNN_SURROGATE(kTriangle), SNN_SURROGATE(kRectangle),
     SNN_SURROGATE(kFastSigmoid)},
    bf16_to_float,
    float_to_bf16,
    add,
};

}  // namespace snn_core
