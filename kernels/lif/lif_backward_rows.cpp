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
};

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

#define SNN_RESETS(X, S)                                                              \
  {                                                                                   \
    {backward<X, S, false, false>, backward<X, S, false, true>}, {                    \
      backward<X, S, true, false>, backward<X, S, true, true>                         \
    }                                                                                 \
  }
#define SNN_SURROGATES(X)                                                                                       \
  {                                                                                                             \
    SNN_RESETS(X, kATan), SNN_RESETS(X, kSigmoid), SNN_RESETS(X, kTriangle), SNN_RESETS(X, kRectangle),         \
        SNN_RESETS(X, kFastSigmoid)                                                                             \
  }
}  // namespace

extern const LifBackwardTable SNN_CONCAT(lif_backward_, SNN_ISA) = {
    {SNN_SURROGATES(float), SNN_SURROGATES(Bf16), SNN_SURROGATES(Fp16)}};

}  // namespace snn_core
