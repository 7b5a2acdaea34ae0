// Device text of the LIF operator: forward, backward, packed forward.
//
// A thread owns kWidth neighbouring neurons for the whole sequence: state in registers, x read once and the output
// written once, in accesses of 16 bytes where layouts allow (kWidth > 1) and element by element otherwise (kWidth 1,
// any strides). Time runs in chunks whose loads are all issued before the first is used, to hide the latency of memory
// (how far that suffices is not yet measured on a GPU). Options that are equal for a whole launch are branches; only what changes the
// registers (storage, width, surrogate) is a template parameter.
#pragma once

#include "lif/lif_cuda.h"
#include "native/device.h"
#include "native/device_storage.h"

namespace snn_core {

// With a learned 1 / tau in place.
SNN_DEVICE LifParameters parameters_of(const NeuronArguments& a) {
  LifParameters p = a.p;
  if (a.reciprocal_tau != nullptr) {
    p.reciprocal_tau = *a.reciprocal_tau;
    if (a.variant.decay_input) p.input_scale = p.reciprocal_tau;
  }
  return p;
}

template <class Element>
SNN_DEVICE Element* place(const DeviceOperand& operand, int64_t at, int64_t t = 0) {
  return static_cast<Element*>(operand.data) + at + t * operand.time_stride;
}

// Walks an operand through time by adding its stride: a product t * stride per step of an unrolled chunk would be kept
// in two registers each.
template <class Element>
struct Cursor {
  Element* at;
  int64_t stride;

  SNN_DEVICE Cursor(const DeviceOperand& operand, int64_t offset, int64_t t = 0)
      : at(place<Element>(operand, offset, t)), stride(operand.time_stride) {}
  SNN_DEVICE Element* next() {
    Element* const here = at;
    at += stride;
    return here;
  }
  SNN_DEVICE Element* previous() {
    Element* const here = at;
    at -= stride;
    return here;
  }
};

// A float whose quotients are approximate on a GPU: within 2 units in the last place, for divisors of at least 1 as the
// surrogates have, in 2 instructions instead of 10 and a branch. Never for what decides a spike.
struct Approximate {
  float value = 0.0f;

  Approximate() = default;
  SNN_INLINE Approximate(float x) : value(x) {}

  friend SNN_INLINE Approximate operator+(Approximate a, Approximate b) { return a.value + b.value; }
  friend SNN_INLINE Approximate operator-(Approximate a, Approximate b) { return a.value - b.value; }
  friend SNN_INLINE Approximate operator*(Approximate a, Approximate b) { return a.value * b.value; }
  friend SNN_INLINE Approximate operator/(Approximate a, Approximate b) {
#if defined(__CUDA_ARCH__)
    float reciprocal;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b.value));
    return a.value * reciprocal;
#else
    return a.value / b.value;
#endif
  }
  friend SNN_INLINE Approximate operator-(Approximate a) { return -a.value; }
  friend SNN_INLINE bool operator<(Approximate a, Approximate b) { return a.value < b.value; }
  friend SNN_INLINE bool operator>(Approximate a, Approximate b) { return a.value > b.value; }
  friend SNN_INLINE bool operator>=(Approximate a, Approximate b) { return a.value >= b.value; }
};

template <>
struct FloatBits<Approximate> {
  static SNN_INLINE unsigned bits(Approximate x) { return FloatBits<float>::bits(x.value); }
  static SNN_INLINE Approximate value(unsigned x) { return FloatBits<float>::value(x); }
};

template <int kWidth>
SNN_DEVICE void charge_all(const float (&x)[kWidth], const float (&v)[kWidth], float (&h)[kWidth],
                           const LifParameters& p, const LifVariant& variant) {
  if (variant.divide) {  // a branch, because a division is most of the code
    SNN_UNROLL
    for (int i = 0; i < kWidth; ++i) h[i] = lif_charge(x[i], v[i], p, variant.decay_input, true);
  } else {
    SNN_UNROLL
    for (int i = 0; i < kWidth; ++i) h[i] = lif_charge(x[i], v[i], p, variant.decay_input, false);
  }
}

template <int kSurrogate>
SNN_DEVICE float step_backward(float gs, float h, float& gv, const LifParameters& p, const LifVariant& variant) {
  Approximate carry = gv;
  const Approximate gh = lif_step_backward<kSurrogate, Approximate>(gs, h, carry, p, variant.soft_reset,
                                                                    variant.detach_reset);
  gv = carry.value;
  return gh.value;
}

// One body for every surrogate, for the path whose speed matters less than the time to compile it.
constexpr int kAnySurrogate = -1;
template <>
SNN_DEVICE float step_backward<kAnySurrogate>(float gs, float h, float& gv, const LifParameters& p,
                                              const LifVariant& variant) {
  switch (variant.surrogate) {
    case kATan:
      return step_backward<kATan>(gs, h, gv, p, variant);
    case kSigmoid:
      return step_backward<kSigmoid>(gs, h, gv, p, variant);
    case kTriangle:
      return step_backward<kTriangle>(gs, h, gv, p, variant);
    case kRectangle:
      return step_backward<kRectangle>(gs, h, gv, p, variant);
    default:
      return step_backward<kFastSigmoid>(gs, h, gv, p, variant);
  }
}

template <int kWidth>
SNN_DEVICE void load_state(float (&v)[kWidth], const DeviceOperand& operand, int64_t at, int64_t t, float missing) {
  if (operand.data != nullptr) {
    load_floats(v, place<float>(operand, at, t), operand.broadcast);
  } else {
    SNN_UNROLL
    for (int i = 0; i < kWidth; ++i) v[i] = missing;
  }
}

// Spikes, v_last and what else is asked for. Without spikes it only rebuilds checkpoints.
template <class Storage, int kWidth>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kForwardThreads, 5) lif_forward_kernel(SNN_GRID_CONSTANT ForwardArguments a) {
  using A = ForwardArguments;
  using Element = typename Storage::Element;
  const LifParameters p = parameters_of(a.neuron);
  const int steps = a.neuron.steps;
  for (int64_t group = global_thread(); group < a.geometry.groups; group += global_threads()) {
    int64_t at[A::kCount];
    locate(a.geometry, group * kWidth, at);
    float v[kWidth];
    load_state(v, a.operand[A::kV0], at[A::kV0], 0, p.v_reset);
    Cursor<Element> x_row(a.operand[A::kX], at[A::kX]);
    Cursor<Element> s_row(a.operand[A::kS], at[A::kS]), v_row(a.operand[A::kVSeq], at[A::kVSeq]);
    Cursor<float> checkpoint(a.operand[A::kCheckpoints], at[A::kCheckpoints]);
    int until_checkpoint = a.checkpoint_every;  // 0 where none is wanted: then never 0 again
    SNN_NO_UNROLL
    for (int first = 0; first < steps; first += kForwardChunk) {
      Pack<Storage, kWidth> x[kForwardChunk];
      SNN_UNROLL
      for (int u = 0; u < kForwardChunk; ++u) {
        const Element* row = x_row.next();
        if (first + u < steps) x[u].load(row);
      }
      SNN_UNROLL
      for (int u = 0; u < kForwardChunk; ++u) {
        if (first + u >= steps) break;
        float h[kWidth];
        bool spikes[kWidth];
        SNN_UNROLL
        for (int i = 0; i < kWidth; ++i) h[i] = x[u].get(i);
        charge_all(h, v, h, p, a.neuron.variant);
        SNN_UNROLL
        for (int i = 0; i < kWidth; ++i) {
          spikes[i] = h[i] >= p.v_threshold;
          v[i] = lif_reset(h[i], p, a.neuron.variant.soft_reset);
        }
        Pack<Storage, kWidth> out;
        if (a.operand[A::kS].data != nullptr) {
          out.set_spikes(spikes);
          out.store(s_row.next());
        }
        if (a.operand[A::kVSeq].data != nullptr) {
          out.set(v);
          out.store(v_row.next());
        }
        if (--until_checkpoint == 0 && first + u + 1 < steps) {
          until_checkpoint = a.checkpoint_every;
          store_floats(v, checkpoint.next());
        }
      }
    }
    if (a.operand[A::kVLast].data != nullptr) {
      store_floats(v, place<float>(a.operand[A::kVLast], at[A::kVLast]));
    }
  }
}

// State with which the chunk that starts at step `first` begins.
template <int kWidth>
SNN_DEVICE void load_chunk_state(float (&v)[kWidth], const BackwardArguments& a, const LifParameters& p,
                                 const int64_t (&at)[BackwardArguments::kCount], int first) {
  using A = BackwardArguments;
  if (first == 0) {
    load_state(v, a.operand[A::kV0], at[A::kV0], 0, p.v_reset);
  } else {
    load_state(v, a.operand[A::kCheckpoints], at[A::kCheckpoints], first / kBackwardChunk - 1, 0.0f);
  }
}

// The terms of one step in d loss / d reciprocal_tau = sum of gh * d h / d reciprocal_tau. x is read again, soon after
// the first time: keeping a chunk of it would double the registers.
template <class Storage, int kWidth>
SNN_DEVICE double tau_terms(const float (&gh)[kWidth], const float (&v_before)[kWidth], const BackwardArguments& a,
                            const LifParameters& p, int64_t at_x, int t) {
  Pack<Storage, kWidth> x;
  x.load(place<typename Storage::Element>(a.operand[BackwardArguments::kX], at_x, t));
  double sum = 0.0;
  SNN_UNROLL
  for (int i = 0; i < kWidth; ++i) {
    const float leak = v_before[i] - p.v_reset;
    const float dh = a.neuron.variant.decay_input ? x.get(i) - leak : -leak;
    sum += static_cast<double>(gh[i]) * dh;
  }
  return sum;
}

// Turns h, which holds x of a chunk, into the potentials before reset; v runs through the chunk.
template <class Storage, int kWidth, int kChunk>
SNN_DEVICE void recompute_chunk(float (&h)[kChunk][kWidth], float (&v)[kWidth], const BackwardArguments& a,
                                const LifParameters& p, int64_t at_x, int first) {
  Cursor<typename Storage::Element> row(a.operand[BackwardArguments::kX], at_x, first);
  SNN_UNROLL
  for (int u = 0; u < kChunk; ++u) {
    const typename Storage::Element* here = row.next();
    if (first + u < a.neuron.steps) {
      Pack<Storage, kWidth> pack;
      pack.load(here);
      SNN_UNROLL
      for (int i = 0; i < kWidth; ++i) h[u][i] = pack.get(i);
    }
  }
  SNN_UNROLL
  for (int u = 0; u < kChunk; ++u) {
    if (first + u >= a.neuron.steps) break;
    charge_all(h[u], v, h[u], p, a.neuron.variant);
    SNN_UNROLL
    for (int i = 0; i < kWidth; ++i) v[i] = lif_reset(h[u][i], p, a.neuron.variant.soft_reset);
  }
}

// kChunk is kBackwardChunk, or kShortChunk where that is the whole sequence. 3 blocks a multiprocessor leave 168
// registers a thread: 64 for h, 32 for grad_s, and no spills (4 blocks spilled).
template <class Storage, int kWidth, int kSurrogate, int kChunk>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kBackwardThreads, kChunk == kBackwardChunk ? 3 : 6)
    lif_backward_kernel(SNN_GRID_CONSTANT BackwardArguments a) {
  using A = BackwardArguments;
  using Element = typename Storage::Element;
  constexpr int kAhead = kGradientChunk < kChunk ? kGradientChunk : kChunk;
  const LifParameters p = parameters_of(a.neuron);
  const int steps = a.neuron.steps;
  // Nothing comes through the spikes then, whatever the surrogate is: not NaN either, which 0 * NaN would be.
  const bool through_spikes = a.operand[A::kGradS].data != nullptr || !a.neuron.variant.detach_reset;
  double tau_sum = 0.0;
  for (int64_t group = global_thread(); group < a.geometry.groups; group += global_threads()) {
    int64_t at[A::kCount];
    locate(a.geometry, group * kWidth, at);
    float gv[kWidth];
    load_state(gv, a.operand[A::kGradVLast], at[A::kGradVLast], 0, 0.0f);
    Cursor<Element> gs_row(a.operand[A::kGradS], at[A::kGradS], steps - 1);
    Cursor<Element> gv_row(a.operand[A::kGradVSeq], at[A::kGradVSeq], steps - 1);
    Cursor<Element> gx_row(a.operand[A::kGradX], at[A::kGradX], steps - 1);
    SNN_NO_UNROLL
    for (int first = (steps - 1) / kChunk * kChunk; first >= 0; first -= kChunk) {
      float h[kChunk][kWidth], v[kWidth];
      load_chunk_state(v, a, p, at, first);
      recompute_chunk<Storage>(h, v, a, p, at[A::kX], first);
      SNN_UNROLL
      for (int part = kChunk - kAhead; part >= 0; part -= kAhead) {
        Pack<Storage, kWidth> gs[kAhead];
        SNN_UNROLL
        for (int u = kAhead - 1; u >= 0; --u) {
          gs[u].fill(0);
          if (a.operand[A::kGradS].data != nullptr && first + part + u < steps) {
            load_pack(gs[u], gs_row.previous(), a.operand[A::kGradS].broadcast);
          }
        }
        SNN_UNROLL
        for (int u = kAhead - 1; u >= 0; --u) {
          if (first + part + u >= steps) continue;
          if (a.operand[A::kGradVSeq].data != nullptr) {
            Pack<Storage, kWidth> g;
            load_pack(g, gv_row.previous(), a.operand[A::kGradVSeq].broadcast);
            SNN_UNROLL
            for (int i = 0; i < kWidth; ++i) gv[i] += g.get(i);
          }
          float gh[kWidth], gx[kWidth];
          SNN_UNROLL
          for (int i = 0; i < kWidth; ++i) {
            float here = h[part + u][i];
            if (!through_spikes && here != here) here = -3.402823466e38f;  // no spike, and the surrogate is 0
            gh[i] = step_backward<kSurrogate>(gs[u].get(i), here, gv[i], p, a.neuron.variant);
            gx[i] = gh[i] * p.input_scale;
          }
          Pack<Storage, kWidth> out;
          out.set(gx);
          out.store(gx_row.previous());
          if (a.tau_sums != nullptr) {
            if (part + u == 0) {
              load_chunk_state(v, a, p, at, first);
            } else {
              SNN_UNROLL
              for (int i = 0; i < kWidth; ++i) {
                v[i] = lif_reset(h[part + u > 0 ? part + u - 1 : 0][i], p, a.neuron.variant.soft_reset);
              }
            }
            tau_sum += tau_terms<Storage>(gh, v, a, p, at[A::kX], first + part + u);
          }
        }
      }
    }
    if (a.operand[A::kGradV0].data != nullptr) store_floats(gv, place<float>(a.operand[A::kGradV0], at[A::kGradV0]));
  }
  if (a.tau_sums != nullptr) {
    a.tau_sums[global_thread()] = tau_sum;
  } else if (global_thread() == 0) {
    *a.tau_result = 0.0f;
  }
}

// Forward whose spikes leave as bits: a thread owns the eight neurons of a byte. With kVector they lie side by side,
// aligned, and none is missing.
template <class Storage, bool kVector>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kForwardThreads, 6) lif_packed_kernel(SNN_GRID_CONSTANT PackedArguments a) {
  using A = PackedArguments;
  using Element = typename Storage::Element;
  const LifParameters p = parameters_of(a.neuron);
  const int steps = a.neuron.steps;
  for (int64_t group = global_thread(); group < a.geometry.groups; group += global_threads()) {
    int64_t at[A::kCount];
    locate(a.geometry, group, at);
    const int64_t left = a.size - at[A::kPosition];
    const int lanes = kVector || left > 8 ? 8 : static_cast<int>(left);
    const DeviceOperand &v0 = a.operand[A::kV0], &v_last = a.operand[A::kVLast];
    float v[8];
    SNN_UNROLL
    for (int i = 0; i < 8; ++i) {
      v[i] = p.v_reset;
      if (v0.data != nullptr && i < lanes) v[i] = *place<float>(v0, at[A::kV0] + i * a.lane_stride[A::kV0]);
    }
    SNN_NO_UNROLL
    for (int first = 0; first < steps; first += kPackedChunk) {
      float x[kPackedChunk][8];
      SNN_UNROLL
      for (int u = 0; u < kPackedChunk; ++u) {
        if (first + u >= steps) break;
        const Element* row = place<Element>(a.operand[A::kX], at[A::kX], first + u);
        if constexpr (kVector) {
          Pack<Storage, 8> pack;
          pack.load(row);
          SNN_UNROLL
          for (int i = 0; i < 8; ++i) x[u][i] = pack.get(i);
        } else {
          SNN_UNROLL
          for (int i = 0; i < 8; ++i) {
            Pack<Storage, 1> pack;
            pack.fill(0);
            if (i < lanes) pack.load(row + i * a.lane_stride[A::kX]);
            x[u][i] = pack.get(0);
          }
        }
      }
      SNN_UNROLL
      for (int u = 0; u < kPackedChunk; ++u) {
        if (first + u >= steps) break;
        unsigned byte = 0;
        charge_all(x[u], v, x[u], p, a.neuron.variant);
        SNN_UNROLL
        for (int i = 0; i < 8; ++i) {
          if (i < lanes && x[u][i] >= p.v_threshold) byte |= 1u << i;
          v[i] = lif_reset(x[u][i], p, a.neuron.variant.soft_reset);
        }
        *place<uint8_t>(a.operand[A::kPacked], at[A::kPacked], first + u) = static_cast<uint8_t>(byte);
      }
    }
    if (kVector && a.lane_stride[A::kVLast] == 1) {
      store_floats(v, place<float>(v_last, at[A::kVLast]));
    } else {
      SNN_UNROLL
      for (int i = 0; i < 8; ++i) {
        if (i < lanes) *place<float>(v_last, at[A::kVLast] + i * a.lane_stride[A::kVLast]) = v[i];
      }
    }
  }
}

}  // namespace snn_core
