// Backward row kernels: four time steps at once, from the last to the first, with the gradient of the state in
// registers.

#include "lif/lif_rows.h"
#include "native/vectors.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {

template <>
struct FloatBits<VectorF> {
  static SNN_VECTOR_INLINE VectorU bits(VectorF x) { return (VectorU)x; }
  static SNN_VECTOR_INLINE VectorF value(VectorU x) { return (VectorF)x; }
};

namespace {

constexpr int kTileSteps = 4;
constexpr int kTileVectors = 4;

// Vectors of F at element i through kSteps time steps ending with the row that the pointers name.
template <class Body, bool kStream, class F, int kVectors, int kSteps, class X>
SNN_VECTOR_INLINE void retreat(const X* gs, const float* h, X* gx, const BackwardRows& r, int64_t i,
                               const LifParameters& p) {
  constexpr int lanes = LaneTraits<F>::lanes;
  F state[kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) state[k] = load<F>(r.gv + i + k * lanes);
#pragma GCC unroll 4
  for (int t = 0; t < kSteps; ++t) {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      const int64_t at = i + k * lanes;
      const F gh = Body::step(load<F>(gs - t * r.gs_stride + at), load<F>(h - t * r.h_stride + at), state[k], p);
      store<kStream>(gx - t * r.gx_stride + at, gh * p.input_scale);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) store<false>(r.gv + i + k * lanes, state[k]);
}

// One step of elements first .. n: what the tiles leave over.
template <class Body, class X>
SNN_VECTOR_INLINE void retreat_row(const X* gs, const float* h, X* gx, const BackwardRows& r, int64_t first,
                                   const LifParameters& p) {
  int64_t i = first;
  for (; i + kLanes <= r.n; i += kLanes) retreat<Body, false, VectorF, 1, 1>(gs, h, gx, r, i, p);
  for (; i < r.n; ++i) retreat<Body, false, float, 1, 1>(gs, h, gx, r, i, p);
}

template <class Body, bool kStream, class X>
SNN_VECTOR_INLINE void all_steps(const BackwardRows& r, LifParameters p) {
  constexpr int strip = kTileVectors * kLanes;
  const int64_t tiled = r.n - r.n % strip;
  const X* gs = static_cast<const X*>(r.gs) + (r.steps - 1) * r.gs_stride;
  const float* h = r.h + (r.steps - 1) * r.h_stride;
  X* gx = static_cast<X*>(r.gx) + (r.steps - 1) * r.gx_stride;
  const auto back = [&](int rows) {
    gs -= rows * r.gs_stride;
    h -= rows * r.h_stride;
    gx -= rows * r.gx_stride;
  };
  int64_t left = r.steps;
  for (; left >= kTileSteps; left -= kTileSteps) {
    for (int64_t i = 0; i < tiled; i += strip) {
      retreat<Body, kStream, VectorF, kTileVectors, kTileSteps>(gs, h, gx, r, i, p);
    }
    if (tiled == r.n) {
      back(kTileSteps);
      continue;
    }
    for (int row = 0; row < kTileSteps; ++row, back(1)) retreat_row<Body>(gs, h, gx, r, tiled, p);
  }
  for (; left > 0; --left, back(1)) retreat_row<Body>(gs, h, gx, r, 0, p);
}

template <int kSurrogate, bool kSoftReset, bool kDetachReset>
struct Body {
  template <class F>
  static SNN_VECTOR_INLINE F step(F gs, F h, F& gv, const LifParameters& p) {
    return lif_step_backward<kSurrogate, kSoftReset, kDetachReset>(gs, h, gv, p);
  }
  template <class F>
  static SNN_VECTOR_INLINE F reset(F h, const LifParameters& p) {
    return lif_reset<kSoftReset>(h, p);
  }
};

// A charge whose decay_input is a run-time value, without a branch: one of `in` and `added` is x, the other 0.
template <class F>
SNN_VECTOR_INLINE F charge_multiplying(F x, F v, typename LaneTraits<F>::U decay_mask, const LifParameters& p) {
  using L = LaneTraits<F>;
  const F in = L::value(L::bits(x) & decay_mask), added = L::value(L::bits(x) & ~decay_mask);
  return v + (in - (v - p.v_reset)) * p.reciprocal_tau + added;
}

// Vectors of F at element i: forward through the steps, then back, with h in registers. kPlain: decay_input with a
// v_reset of 0, which takes a sixth of the instructions less.
template <class Body, bool kStream, bool kPlain, class F, int kVectors, class X>
SNN_VECTOR_INLINE void there_and_back(const FusedRows& r, int64_t i, const LifParameters& p) {
  using L = LaneTraits<F>;
  constexpr int lanes = L::lanes, steps = kFusedSteps;
  const X *x = static_cast<const X*>(r.x) + i, *gs = static_cast<const X*>(r.gs) + i;
  X* gx = static_cast<X*>(r.gx) + i;
  const typename L::U decay_mask = typename L::U{} - (r.decay_input ? 1u : 0u);
  F h[steps][kVectors], state[kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) state[k] = load<F>(r.v + i + k * lanes);
#pragma GCC unroll 4
  for (int t = 0; t < steps; ++t) {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      const F x_t = load<F>(x + t * r.x_stride + k * lanes);
      h[t][k] = kPlain ? state[k] + (x_t - state[k]) * p.reciprocal_tau
                       : charge_multiplying(x_t, state[k], decay_mask, p);
      state[k] = Body::reset(h[t][k], p);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) state[k] = load<F>(r.gv + i + k * lanes);
#pragma GCC unroll 4
  for (int t = steps - 1; t >= 0; --t) {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      const F gh = Body::step(load<F>(gs + t * r.gs_stride + k * lanes), h[t][k], state[k], p);
      // The product is in the step already where the scale is reciprocal_tau.
      store<kStream>(gx + t * r.gx_stride + k * lanes, gh * (kPlain ? p.reciprocal_tau : p.input_scale));
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) store<false>(r.gv + i + k * lanes, state[k]);
}

template <class Body, bool kStream, bool kPlain, class X>
SNN_VECTOR_INLINE void fused_run(const FusedRows& r, LifParameters p) {
  constexpr int vectors = kLanes == 16 ? 2 : 1, strip = vectors * kLanes;
  int64_t i = 0;
  for (; i + strip <= r.n; i += strip) there_and_back<Body, kStream, kPlain, VectorF, vectors, X>(r, i, p);
  for (; i < r.n; ++i) there_and_back<Body, false, false, float, 1, X>(r, i, p);
}

template <class X, int kSurrogate, bool kSoftReset, bool kDetachReset>
void fused(const FusedRows& r, const LifParameters& p) {
  using B = Body<kSurrogate, kSoftReset, kDetachReset>;
  const bool plain = r.decay_input && p.v_reset == 0.0f;
  if (r.stream) {
    plain ? fused_run<B, true, true, X>(r, p) : fused_run<B, true, false, X>(r, p);
    stream_fence();
  } else {
    plain ? fused_run<B, false, true, X>(r, p) : fused_run<B, false, false, X>(r, p);
  }
}

template <class X, int kSurrogate, bool kSoftReset, bool kDetachReset>
void backward(const BackwardRows& r, const LifParameters& p) {
  using B = Body<kSurrogate, kSoftReset, kDetachReset>;
  if (r.stream) {
    all_steps<B, true, X>(r, p);
    stream_fence();
  } else {
    all_steps<B, false, X>(r, p);
  }
}

#define SNN_RESETS(kernel, X, S)                                        \
  {                                                                     \
    {kernel<X, S, false, false>, kernel<X, S, false, true>}, {          \
      kernel<X, S, true, false>, kernel<X, S, true, true>               \
    }                                                                   \
  }
#define SNN_SURROGATES(kernel, X)                                                                      \
  {                                                                                                    \
    SNN_RESETS(kernel, X, kATan), SNN_RESETS(kernel, X, kSigmoid), SNN_RESETS(kernel, X, kTriangle),   \
        SNN_RESETS(kernel, X, kRectangle), SNN_RESETS(kernel, X, kFastSigmoid)                         \
  }
#define SNN_STORAGES(kernel) \
  { SNN_SURROGATES(kernel, float), SNN_SURROGATES(kernel, Bf16), SNN_SURROGATES(kernel, Fp16) }

}  // namespace

extern const LifBackwardTable SNN_CONCAT(lif_backward_, SNN_ISA) = {SNN_STORAGES(backward), SNN_STORAGES(fused)};

}  // namespace snn_core
