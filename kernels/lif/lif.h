// Arithmetic of the leaky integrate-and-fire neuron: one text for every compiled backend, CPU and CUDA.
//
// The order of operations is SpikingJelly's, without fused multiply-add, so that spikes agree with it bit for bit:
//     h = v + (x - (v - v_reset)) / tau      decay_input
//     h = v - (v - v_reset) / tau + x        otherwise
//     s = h >= v_threshold
//     v = s ? v_reset : h   (hard reset)     v = s ? h - v_threshold : h   (soft reset; v_reset is then 0 above)
// Compile with -ffp-contract=off (g++) or --fmad=false (nvcc).
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

// Codes shared with ops.py.
enum Surrogate { kATan = 0, kSigmoid = 1, kTriangle = 2, kRectangle = 3, kFastSigmoid = 4, kSurrogateCount = 5 };

// The charge step. kDivide divides by tau; otherwise multiplies by reciprocal_tau (equal when tau is a power of two).
template <bool kDecayInput, bool kDivide>
SNN_INLINE float lif_charge(float x, float v, const LifParameters& p) {
  const float leak = v - p.v_reset;
  if (kDecayInput) {
    const float drive = x - leak;
    return v + (kDivide ? drive / p.tau : drive * p.reciprocal_tau);
  }
  return v - (kDivide ? leak / p.tau : leak * p.reciprocal_tau) + x;
}

template <bool kSoftReset>
SNN_INLINE float lif_reset(float h, const LifParameters& p) {
  return h >= p.v_threshold ? (kSoftReset ? h - p.v_threshold : p.v_reset) : h;
}

// exp(x) for finite x, relative error below 2e-7, clamped to [-87, 88]; plain arithmetic, so that it vectorises and
// rounds alike everywhere (libm's expf does neither).
SNN_INLINE float exp_portable(float x) {
  x = x > 88.0f ? 88.0f : x;
  x = x > -87.0f ? x : -87.0f;  // NaN too: the conversion to an integer below must stay defined
  const float shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23 rounds to the nearest integer
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float e = 1.9875691500e-4f;
  e = e * r + 1.3981999507e-3f;
  e = e * r + 8.3334519073e-3f;
  e = e * r + 4.1665795894e-2f;
  e = e * r + 1.6666665459e-1f;
  e = e * r + 5.0000001201e-1f;
  e = e * (r * r) + r + 1.0f;
  const int bits = (static_cast<int>(n) + 127) << 23;
#if defined(__CUDA_ARCH__)
  return e * __int_as_float(bits);
#else
  return e * __builtin_bit_cast(float, bits);
#endif
}

// ds/dh at u = h - v_threshold.
template <int kSurrogate>
SNN_INLINE float surrogate_gradient(float u, float alpha) {
  const float magnitude = u < 0.0f ? -u : u;
  if (kSurrogate == kATan) {
    const float z = u * (alpha * 1.57079632679489662f);
    return (0.5f * alpha) / (1.0f + z * z);
  }
  if (kSurrogate == kSigmoid) {
    const float e = exp_portable(-(alpha * magnitude));  // symmetric, so the stable side serves both signs
    const float d = 1.0f + e;
    return alpha * e / (d * d);
  }
  if (kSurrogate == kTriangle) return magnitude > 1.0f / alpha ? 0.0f : alpha - alpha * alpha * magnitude;
  if (kSurrogate == kRectangle) return magnitude < 0.5f / alpha ? alpha : 0.0f;
  const float d = 1.0f + magnitude;
  return alpha / (d * d);  // kFastSigmoid (SuperSpike)
}

// One step backward in time. `gv` is the gradient of v[t] (own gradient plus what came from t + 1);
// returns the gradient of h[t] and leaves the gradient of v[t - 1] in `gv`.
template <int kSurrogate, bool kSoftReset, bool kDetachReset>
SNN_INLINE float lif_step_backward(float gs, float h, float& gv, const LifParameters& p) {
  const float g = surrogate_gradient<kSurrogate>(h - p.v_threshold, p.alpha);
  float dv_dh = kSoftReset ? 1.0f : (h >= p.v_threshold ? 0.0f : 1.0f);
  if (!kDetachReset) {
    const float finite_h = h > 3.402823466e38f ? 3.402823466e38f : h;  // where h is infinite g is 0, and so must this be
    dv_dh = dv_dh + (kSoftReset ? -p.v_threshold * g : (p.v_reset - finite_h) * g);
  }
  const float gh = gs * g + gv * dv_dh;
  gv = gh - gh * p.reciprocal_tau;
  return gh;
}

}  // namespace snn_core
