// Bodies of topk_rows.h: a vector of blocks at a time, the M positions of each in as many vectors.

#include "topk_sampler/topk_rows.h"

#include "native/vectors.h"
#include "topk_sampler/topk_shuffle.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {

template <>
struct FloatBits<VectorF> {
  static SNN_VECTOR_INLINE VectorU bits(VectorF x) { return (VectorU)x; }
  static SNN_VECTOR_INLINE VectorF value(VectorU x) { return (VectorF)x; }
};

typedef uint64_t VectorW __attribute__((vector_size(4 * kLanes)));  // half the lanes, twice as wide

template <>
struct WideProduct<VectorW> {
  static SNN_VECTOR_INLINE VectorW of(VectorW a, uint32_t factor) {
    const VectorW b = VectorW{} + factor;
#if defined(__AVX512F__)
    return (VectorW)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (VectorW)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (VectorW)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffffu) * b;
#endif
  }
};

namespace {

typedef uint8_t VectorB __attribute__((vector_size(kLanes)));

SNN_VECTOR_INLINE VectorF root(VectorF x) {
#if defined(__AVX512F__)
  return (VectorF)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (VectorF)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (VectorF)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

SNN_VECTOR_INLINE VectorF absolute(VectorF x) { return (VectorF)((VectorU)x & 0x7fffffffu); }
SNN_VECTOR_INLINE VectorF larger(VectorF a, VectorF b) { return a > b ? a : b; }

// Random words of positions 4 quarter .. 4 quarter + 3 of kLanes blocks: those of even lanes, then of odd ones.
SNN_VECTOR_INLINE void random_words(uint64_t block, uint64_t quarter, const KeyOptions& o, VectorU (&word)[4]) {
  VectorW lane;
  for (int i = 0; i < kLanes / 2; ++i) lane[i] = 2 * i;
  VectorW even[4] = {lane + block, VectorW{} + quarter, VectorW{} + (o.offset & 0xffffffffu),
                     VectorW{} + (o.offset >> 32)};
  VectorW odd[4] = {even[0] + 1, even[1], even[2], even[3]};
  philox(even, o.keys);
  philox(odd, o.keys);
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) word[r] = (VectorU)((even[r] & 0xffffffffu) | (odd[r] << 32));
}

// The positions of one vector of blocks. kM: M where it is known to the compiler, else 0.
template <int kM>
struct Positions {
  static constexpr int kSize = kM ? kM : kMaxPositions;
  VectorF clean[kSize], key[kSize];  // without and with noise
  VectorI taken[kSize];

  SNN_VECTOR_INLINE void make_key(const KeyOptions& o, const KeyTile& t, int64_t j) {
    const int m = kM ? kM : static_cast<int>(o.m);
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) {
      VectorF value{};
      if (t.logits) value = o.kappa * load<VectorF>(t.logits + i * t.logits_stride + j);
      if (t.anchor) {
        VectorF anchor = load<VectorF>(t.anchor + i * t.anchor_stride + j);
        if (o.absolute) anchor = absolute(anchor);
        value = t.logits ? value + o.rho * anchor : o.rho * anchor;
      }
      clean[i] = key[i] = value;
    }
    if (o.eta == 0.0f) return;
    for (int first = 0; first < m; first += 4) {
      VectorU word[4];
      random_words(t.first_block + j, first / 4, o, word);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        if (first + r < m) key[first + r] = clean[first + r] + o.eta * gumbel<VectorF>(word[r]);
      }
    }
  }

  // Marks the n largest; the result is set where a key is not finite or the count is not n.
  SNN_VECTOR_INLINE VectorI take(const KeyOptions& o) {
    const int m = kM ? kM : static_cast<int>(o.m);
    VectorF left[kSize], nought{};
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) {
      left[i] = key[i];
      taken[i] = VectorI{};
      nought += key[i] - key[i];
    }
    for (int draw = 0; draw < o.n; ++draw) {
      VectorF best = left[0];
#pragma GCC unroll 4
      for (int i = 1; i < m; ++i) best = larger(left[i], best);
      VectorI open = VectorI{} - 1;
#pragma GCC unroll 4
      for (int i = 0; i < m; ++i) {
        const VectorI hit = (left[i] == best) & open;
        taken[i] |= hit;
        open &= ~hit;
        left[i] = hit ? VectorF{} - __builtin_inff() : left[i];
      }
    }
    VectorI kept{};
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) kept -= taken[i];
    return (kept != static_cast<int32_t>(o.n)) | ~(nought == 0.0f);
  }
};

SNN_VECTOR_INLINE int64_t count_set(VectorI lanes) {
  int64_t count = 0;
  for (int i = 0; i < kLanes; ++i) count -= lanes[i];
  return count;
}

template <int kM>
int64_t draw(const KeyOptions& o, const DrawTile& t) {
  const int m = kM ? kM : static_cast<int>(o.m);
  VectorI wrong{};
  for (int64_t j = 0; j < t.key.count; j += kLanes) {
    Positions<kM> b;
    b.make_key(o, t.key, j);
    wrong += b.take(o);
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) {
      store_unaligned(t.mask + i * t.mask_stride + j, __builtin_convertvector((VectorU)b.taken[i] & 1u, VectorB));
      if (t.weight) {
        const VectorF w = load<VectorF>(t.weight + i * t.weight_stride + j);
        store_unaligned(t.masked + i * t.masked_stride + j, b.taken[i] ? w : w * t.beta);
      }
    }
  }
  return count_set(wrong);
}

// p = softmax(a)
template <int kM>
SNN_VECTOR_INLINE void softmax(const VectorF* a, VectorF* p, int m) {
  VectorF top = a[0], sum{};
#pragma GCC unroll 4
  for (int i = 1; i < m; ++i) top = larger(a[i], top);
#pragma GCC unroll 4
  for (int i = 0; i < m; ++i) {
    p[i] = exp_portable(a[i] - top);
    sum += p[i];
  }
  const VectorF factor = 1.0f / sum;
#pragma GCC unroll 4
  for (int i = 0; i < m; ++i) p[i] *= factor;
}

// The n relaxed draws of a vector of blocks, [n, m].
template <int kM>
SNN_VECTOR_INLINE void relaxed_draws(const Positions<kM>& b, const KeyOptions& o, float reciprocal, VectorF* draws) {
  const int m = kM ? kM : static_cast<int>(o.m), n = static_cast<int>(o.n);
  VectorF a[Positions<kM>::kSize];
#pragma GCC unroll 4
  for (int i = 0; i < m; ++i) a[i] = b.key[i] * reciprocal;
  for (int draw = 0; draw < n; ++draw) {
    VectorF* p = draws + draw * m;
    softmax<kM>(a, p, m);
    if (draw + 1 == n) break;
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) a[i] += log_portable(larger(1.0f - p[i], VectorF{} + kSoftFloor)) * reciprocal;
  }
}

// Gradient of the sum of the draws to the key, `grad` being that of the sum.
template <int kM>
SNN_VECTOR_INLINE void relaxed_gradient(const VectorF* draws, const KeyOptions& o, float reciprocal,
                                        const VectorF* grad, VectorF* result) {
  const int m = kM ? kM : static_cast<int>(o.m), n = static_cast<int>(o.n);
#pragma GCC unroll 4
  for (int i = 0; i < m; ++i) result[i] = VectorF{};
  for (int draw = n - 1; draw >= 0; --draw) {
    const VectorF* p = draws + draw * m;
    VectorF weighted[Positions<kM>::kSize], sum{};
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) {
      VectorF g = grad[i];
      if (draw + 1 < n) {
        const VectorF rest = 1.0f - p[i];
        g -= rest > kSoftFloor ? result[i] * reciprocal / rest : VectorF{};
      }
      weighted[i] = g * p[i];
      sum += weighted[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) result[i] += weighted[i] - p[i] * sum;
  }
#pragma GCC unroll 4
  for (int i = 0; i < m; ++i) result[i] *= reciprocal;
}

template <int kM, bool kBackward>
void soft(const KeyOptions& o, const SoftTile& t) {
  const int m = kM ? kM : static_cast<int>(o.m);
  for (int64_t j = 0; j < t.key.count; j += kLanes) {
    Positions<kM> b;
    VectorF draws[Positions<kM>::kSize * Positions<kM>::kSize], result[Positions<kM>::kSize];
    b.make_key(o, t.key, j);
    relaxed_draws<kM>(b, o, t.reciprocal_temperature, draws);
    if constexpr (kBackward) {
      VectorF grad[Positions<kM>::kSize];
      for (int i = 0; i < m; ++i) grad[i] = load<VectorF>(t.grad + i * t.grad_stride + j);
      relaxed_gradient<kM>(draws, o, t.reciprocal_temperature, grad, result);
      for (int i = 0; i < m; ++i) result[i] *= o.kappa;
    } else {
      for (int i = 0; i < m; ++i) {
        result[i] = draws[i];
        for (int draw = 1; draw < o.n; ++draw) result[i] += draws[draw * m + i];
      }
    }
    for (int i = 0; i < m; ++i) store_unaligned(t.out + i * t.out_stride + j, result[i]);
  }
}

template <int kM>
int64_t update(const KeyOptions& o, const UpdateOptions& u, const UpdateTile& t) {
  const int m = kM ? kM : static_cast<int>(o.m);
  VectorI wrong{};
  for (int64_t j = 0; j < t.key.count; j += kLanes) {
    Positions<kM> b;
    VectorF draws[Positions<kM>::kSize * Positions<kM>::kSize];
    VectorF w[Positions<kM>::kSize], grad[Positions<kM>::kSize], result[Positions<kM>::kSize];
    b.make_key(o, t.key, j);
    if (u.decay != 0.0f) b.take(o);
    relaxed_draws<kM>(b, o, u.reciprocal_temperature, draws);
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) {
      w[i] = load<VectorF>(t.key.anchor + i * t.key.anchor_stride + j);
      const VectorF g = load<VectorF>(t.grad + i * t.grad_stride + j);
      grad[i] = w[i] * g;
      if (u.decay != 0.0f) store_unaligned(t.grad + i * t.grad_stride + j, b.taken[i] ? g : g + u.decay * w[i]);
    }
    relaxed_gradient<kM>(draws, o, u.reciprocal_temperature, grad, result);
    if (t.target) {
      VectorF probability[Positions<kM>::kSize];
      if (!u.pull_key) {
        for (int i = 0; i < m; ++i) b.clean[i] = load<VectorF>(t.logits + i * t.logits_stride + j);
      }
      softmax<kM>(b.clean, probability, m);
#pragma GCC unroll 4
      for (int i = 0; i < m; ++i) {
        const VectorF target = load<VectorF>(t.target + i * t.target_stride + j);
        result[i] = result[i] * u.scale + u.pull * (probability[i] - target);
      }
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < m; ++i) result[i] *= u.scale;
    }
    VectorF nought{};
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) nought += result[i] - result[i];
    const VectorI fine = nought == 0.0f;
    wrong += ~fine;
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) {
      float *const logits = t.logits + i * t.logits_stride + j, *const avg = t.exp_avg + i * t.avg_stride + j;
      float* const sq = t.exp_avg_sq + i * t.sq_stride + j;
      const VectorF old = load<VectorF>(logits), old_avg = load<VectorF>(avg), old_sq = load<VectorF>(sq);
      const VectorF mean = old_avg + u.beta1_rest * (result[i] - old_avg);
      const VectorF square = old_sq * u.beta2 + u.beta2_rest * (result[i] * result[i]);
      const VectorF moved = old - u.step_size * mean / (root(square) * u.reciprocal_root + u.epsilon);
      store_unaligned(avg, fine ? mean : old_avg);
      store_unaligned(sq, fine ? square : old_sq);
      store_unaligned(logits, fine ? moved : old);
    }
  }
  return count_set(wrong);
}

template <int kM>
int64_t credit(const CreditOptions& o, const CreditTile& t, int64_t* nonzero) {
  const int m = kM ? kM : static_cast<int>(o.m);
  VectorI wrong{}, some{};
  for (int64_t j = 0; j < t.count; j += kLanes) {
    VectorF value[Positions<kM>::kSize], fresh[Positions<kM>::kSize], nought{}, sum{}, squares{};
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) value[i] = load<VectorF>(t.credit + i * t.credit_stride + j);
    if (t.fresh) {
#pragma GCC unroll 4
      for (int i = 0; i < m; ++i) {
        VectorF f = load<VectorF>(t.fresh + i * t.fresh_stride + j);
        if (t.weight) f *= load<VectorF>(t.weight + i * t.weight_stride + j);
        nought += f - f;
        fresh[i] = value[i] * o.keep + absolute(f) * o.share;
      }
      const VectorI fine = nought == 0.0f;
      wrong += ~fine;
#pragma GCC unroll 4
      for (int i = 0; i < m; ++i) {
        value[i] = fine ? fresh[i] : value[i];
        store_unaligned(t.credit + i * t.credit_stride + j, value[i]);
      }
    }
    VectorI any{};
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) {
      any |= value[i] != 0.0f;
      sum += value[i];
    }
    some += any;
    const VectorF mean = sum * (1.0f / static_cast<float>(m));
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) {
      value[i] -= mean;
      squares += value[i] * value[i];
    }
    const VectorF factor = o.reciprocal_temperature / (root(squares * (1.0f / static_cast<float>(m - 1))) + 1e-12f);
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) value[i] *= factor;
    softmax<kM>(value, fresh, m);
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) store_unaligned(t.target + i * t.target_stride + j, fresh[i]);
  }
  *nonzero += count_set(some);
  return count_set(wrong);
}

// Eight sums side by side whatever the vectors are: the same bits for every instruction set.
void moments(const float* x, int64_t n, double* sums) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef double Doubles __attribute__((vector_size(64)));
  Doubles first{}, second{};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const Doubles value = __builtin_convertvector(load_unaligned<Eight>(x + i), Doubles);
    first += value < 0.0 ? -value : value;
    second += value * value;
  }
  for (int64_t k = 0; i < n; ++i, ++k) {
    const double value = x[i];
    first[k] += value < 0.0 ? -value : value;
    second[k] += value * value;
  }
  sums[0] = sums[1] = 0.0;
  for (int k = 0; k < 8; ++k) {
    sums[0] += first[k];
    sums[1] += second[k];
  }
}

#define SNN_FOR_M(call)                \
  switch (o.m) {                       \
    case 4: return call(4);            \
    case 8: return call(8);            \
    case 16: return call(16);          \
    default: return call(0);           \
  }

#define SNN_DRAW(M) draw<M>(o, t)
int64_t draw_any(const KeyOptions& o, const DrawTile& t) { SNN_FOR_M(SNN_DRAW) }
#define SNN_SOFT(M) soft<M, false>(o, t)
void soft_any(const KeyOptions& o, const SoftTile& t) { SNN_FOR_M(SNN_SOFT) }
#define SNN_SOFT_BACKWARD(M) soft<M, true>(o, t)
void soft_backward_any(const KeyOptions& o, const SoftTile& t) { SNN_FOR_M(SNN_SOFT_BACKWARD) }
#define SNN_UPDATE(M) update<M>(o, u, t)
int64_t update_any(const KeyOptions& o, const UpdateOptions& u, const UpdateTile& t) { SNN_FOR_M(SNN_UPDATE) }
#define SNN_CREDIT(M) credit<M>(o, t, nonzero)
int64_t credit_any(const CreditOptions& o, const CreditTile& t, int64_t* nonzero) { SNN_FOR_M(SNN_CREDIT) }

}  // namespace

extern const TopkTable SNN_CONCAT(topk_, SNN_ISA) = {
    draw_any, soft_any, soft_backward_any, update_any, credit_any, split_blocks, join_blocks, join_byte_blocks, moments};

}  // namespace snn_core
