// Arithmetic of the top-k sampler: noise from a counter-based generator, its logarithm, top n of M. One text for every
// instruction set, and the same steps as reference.py and triton_kernels.py, so that masks are the same bits.
//
//     key  = kappa * logits + rho * anchor + eta * gumbel        unfused, in this order; absent terms are left out
//     hard = the n largest of the key, ties to the lower position
// Compile with -ffp-contract=off.
#pragma once

#include <cstdint>

#include "lif/lif.h"

namespace snn_core {

constexpr int kMaxPositions = 32;
constexpr float kSoftFloor = 1e-6f;  // of 1 - p before its logarithm; EPSILON of reference.py

// Philox4x32-10 (Salmon et al. 2011). Lanes hold 32-bit words; what is above them is garbage, which the product ignores.
struct PhiloxKeys {
  uint64_t low[10], high[10];

  SNN_INLINE explicit PhiloxKeys(uint64_t seed) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      low[round] = k0;
      high[round] = k1;
    }
  }
};

// 32 x 32 -> 64 bits; the row kernels add the same for their vectors.
template <class W>
struct WideProduct;
template <>
struct WideProduct<uint64_t> {
  static SNN_INLINE uint64_t of(uint64_t a, uint32_t factor) { return (a & 0xffffffffu) * factor; }
};

template <class W>
SNN_INLINE void philox(W (&counter)[4], const PhiloxKeys& keys) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const W first = WideProduct<W>::of(counter[0], 0xD2511F53u), second = WideProduct<W>::of(counter[2], 0xCD9E8D57u);
    counter[0] = (second >> 32) ^ counter[1] ^ keys.low[round];
    counter[1] = second;
    counter[2] = (first >> 32) ^ counter[3] ^ keys.high[round];
    counter[3] = first;
  }
}

// log(x) of a positive normal x, relative error below 1.2e-7. Plain arithmetic, so that it vectorises and rounds alike
// everywhere: x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), log(1 + f) = f + f^2 q(f).
template <class F>
SNN_INLINE F log_portable(F x) {
  using Bits = FloatBits<F>;
  const auto field = Bits::bits(x) + (0x3f800000u - 0x3f3504f3u);
  const F e = Bits::value((field >> 23) | 0x4b000000u) - 8388735.0f;  // 2^23 + 127
  const F f = Bits::value((field & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  F q = f * 0.08734588f - 0.14307415f;
  q = q * f + 0.14918016f;
  q = q * f - 0.16570525f;
  q = q * f + 0.1996207f;
  q = q * f - 0.25001755f;
  q = q * f + 0.3333395f;
  q = q * f - 0.4999999f;
  return (f + (f * f) * q) + e * 0.6931472f;
}

// Standard Gumbel noise from 32 random bits: u = (k + 1/2) / 2^23 of the upper 23, exact, so never 0 nor 1.
template <class F, class U>
SNN_INLINE F gumbel(U bits) {
  const F u = FloatBits<F>::value((bits >> 9) | 0x3f800000u) - 0.99999994f;
  return -log_portable(-log_portable(u));
}

}  // namespace snn_core
