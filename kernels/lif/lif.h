// Arithmetic of the leaky integrate-and-fire neuron: one text for every compiled backend, CPU and CUDA.
//
// The order of operations is SpikingJelly's, without fused multiply-add, so that spikes agree with it bit for bit:
//     h = v + (x - (v - v_reset)) / tau      decay_input
//     h = v - (v - v_reset) / tau + x        otherwise
//     s = h >= v_threshold
//     v = s ? v_reset : h   (hard reset)     v = s ? h - v_threshold : h   (soft reset; v_reset is then 0 above)
// Compile with -ffp-contract=off (g++) or --fmad=false (nvcc).
//
// Functions take one neuron (F = float) or, in the CPU's row kernels, a short vector of the compiler's extension, for
// which comparisons and ?: work lane by lane.
#pragma once

#if defined(__CUDACC__)
#define SNN_INLINE __host__ __device__ __forceinline__
#else
#define SNN_INLINE inline __attribute__((always_inline))
#endif

namespace snn_core {

struct LifParameters {
  float tau;             // time constant in steps; used where 1 / tau is not exact
  float reciprocal_tau;  // 1 / tau, or the learned value (PLIF), or 0 (IF)
  float v_threshold;
  float v_reset;         // 0 for soft reset
  float alpha;           // width of the surrogate
  float input_scale;     // d h / d x: reciprocal_tau with decay_input, else 1
};

// Neuron variants that select a compiled body.
struct LifVariant {
  bool decay_input;
  bool divide;
  bool soft_reset;
  bool detach_reset;
  int surrogate;
};

// Codes shared with ops.py.
enum Surrogate { kATan = 0, kSigmoid = 1, kTriangle = 2, kRectangle = 3, kFastSigmoid = 4, kSurrogateCount = 5 };

// A learned value in place of 1 / tau.
SNN_INLINE void apply_reciprocal_tau(LifParameters& p, bool decay_input, float value) {
  p.reciprocal_tau = value;
  if (decay_input) p.input_scale = value;
}

// Functions with flags are for kernels whose options are run-time values, equal for a whole launch (CUDA: selects
// instead of a body for each combination). The templates call them with constants.

// The charge step. `divide` divides by tau; otherwise it multiplies by reciprocal_tau (equal when tau is a power of
// two).
template <class F>
SNN_INLINE F lif_charge(F x, F v, const LifParameters& p, bool decay_input, bool divide) {
  const F leak = v - p.v_reset;
  const F drive = decay_input ? x - leak : leak;
  const F change = divide ? drive / p.tau : drive * p.reciprocal_tau;
  return decay_input ? v + change : v - change + x;
}
template <bool kDecayInput, bool kDivide, class F>
SNN_INLINE F lif_charge(F x, F v, const LifParameters& p) {
  return lif_charge(x, v, p, kDecayInput, kDivide);
}

template <class F>
SNN_INLINE F lif_reset(F h, const LifParameters& p, bool soft_reset) {
  const F after_spike = soft_reset ? h - p.v_threshold : F{} + p.v_reset;
  return h >= p.v_threshold ? after_spike : h;
}
template <bool kSoftReset, class F>
SNN_INLINE F lif_reset(F h, const LifParameters& p) {
  return lif_reset(h, p, kSoftReset);
}

// Reinterpretation of a float as an integer and back; the row kernels add the same for their vectors.
template <class F>
struct FloatBits;
template <>
struct FloatBits<float> {
#if defined(__CUDA_ARCH__)
  static SNN_INLINE unsigned bits(float x) { return __float_as_uint(x); }
  static SNN_INLINE float value(unsigned x) { return __uint_as_float(x); }
#else
  static SNN_INLINE unsigned bits(float x) { return __builtin_bit_cast(unsigned, x); }
  static SNN_INLINE float value(unsigned x) { return __builtin_bit_cast(float, x); }
#endif
};

// exp(x), relative error below 2e-7; 0 below -87, exp(88) above 88, NaN for NaN. Plain arithmetic, so that it
// vectorises and rounds alike everywhere (libm's expf does neither).
template <class F>
SNN_INLINE F exp_portable(F x) {
  const F zero = F{}, highest = zero + 88.0f, lowest = zero - 87.0f;
  F y = x > highest ? highest : x;
  y = y > lowest ? y : lowest;  // NaN too: its integer below must not be arbitrary
  const F shifted = y * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23 rounds to the nearest integer n
  const F n = shifted - 12582912.0f;
  const F r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  F e = r * 1.9875691500e-4f;
  e = (e + 1.3981999507e-3f) * r;
  e = (e + 8.3334519073e-3f) * r;
  e = (e + 4.1665795894e-2f) * r;
  e = (e + 1.6666665459e-1f) * r;
  e = (e + 5.0000001201e-1f) * (r * r) + r + 1.0f;
  // 2^n: the low bits of `shifted` hold n; moved into the exponent, and the bias added.
  e = e * FloatBits<F>::value((FloatBits<F>::bits(shifted) << 23) + 0x3f800000u);
  const F below = x < lowest ? zero : x;  // else NaN
  return x >= lowest ? e : below;
}

// ds/dh at u = h - v_threshold.
template <int kSurrogate, class F>
SNN_INLINE F surrogate_gradient(F u, float alpha) {
  const F zero = F{};
  const F magnitude = u < zero ? -u : u;
  if (kSurrogate == kATan) {
    const F z = u * (alpha * 1.57079632679489662f);
    return (0.5f * alpha) / (1.0f + z * z);
  }
  if (kSurrogate == kSigmoid) {
    const F e = exp_portable(-(alpha * magnitude));  // symmetric, so the stable side serves both signs
    const F d = 1.0f + e;
    return alpha * e / (d * d);
  }
  if (kSurrogate == kTriangle) return magnitude > 1.0f / alpha ? zero : alpha - alpha * alpha * magnitude;
  if (kSurrogate == kRectangle) return magnitude < 0.5f / alpha ? zero + alpha : zero;
  const F d = 1.0f + magnitude;
  return alpha / (d * d);  // kFastSigmoid (SuperSpike)
}

// One step backward in time. `gv` is the gradient of v[t] (own gradient plus what came from t + 1);
// returns the gradient of h[t] and leaves the gradient of v[t - 1] in `gv`.
template <int kSurrogate, class F>
SNN_INLINE F lif_step_backward(F gs, F h, F& gv, const LifParameters& p, bool soft_reset, bool detach_reset) {
  const F g = surrogate_gradient<kSurrogate>(h - p.v_threshold, p.alpha);
  const F zero = F{}, one = zero + 1.0f, largest = zero + 3.402823466e38f;
  F dv_dh = one;
  if (!soft_reset) dv_dh = h >= p.v_threshold ? zero : one;
  if (!detach_reset) {
    const F finite_h = h > largest ? largest : h;  // where h is infinite g is 0, and so must this be
    dv_dh = dv_dh + (soft_reset ? zero - p.v_threshold : p.v_reset - finite_h) * g;
  }
  const F gh = gs * g + gv * dv_dh;
  gv = gh - gh * p.reciprocal_tau;
  return gh;
}
template <int kSurrogate, bool kSoftReset, bool kDetachReset, class F>
SNN_INLINE F lif_step_backward(F gs, F h, F& gv, const LifParameters& p) {
  return lif_step_backward<kSurrogate>(gs, h, gv, p, kSoftReset, kDetachReset);
}

}  // namespace snn_core
