// Instructions of the tensor cores on registers (mma, mma.sp) and how their operands are loaded (ldmatrix), for the
// device and, as a model of what PTX documents, for the emulation. g = lane / 4, t = lane % 4.
//
// The weight is operand A (16 outputs), the activations are operand B (8 rows of x), the sums are [16, 8]. Everything
// is counted in "slots" of K: 32 of 16-bit and 64 of 8-bit operands in one sparse instruction, half as many in a dense
// one. Both operand sizes then have the same registers: A 4 (16 rows of 32 bytes), B 4 (8 rows of 64 bytes; dense 2).
//     A    register i: row g + 8 (i % 2), bytes 16 (i / 2) + 4 t ...       (ldmatrix: 16 bytes of 8 rows a register)
//     B    register j: row g of x, bytes 16 j + 4 t ...
//     sums 0, 1: output g, rows 2 t and 2 t + 1 of x; 2, 3: output g + 8
//     metadata, 4 bits for 4 slots (first position | second << 2), lowest bits first:
//          16-bit: thread t of a pair (t = 0, 1: selector 0; t = 2, 3: selector 1) has slots 16 (t % 2) ... of output g
//                  in its lower half and of output g + 8 in its upper half
//          8-bit:  thread t has slots 32 (t / 2) ... of output g + 8 (t % 2)
// The metadata follows torch's conversion for CUTLASS (torch/sparse/_semi_structured_conversions.py), whose words are
// those of the lanes in order; tests/kernels/test_nm_cuda.py compares them.
#pragma once

#include "native/device_block.h"
#include "native/device_storage.h"

namespace snn_core {

struct Fragment {
  uint32_t reg[4];
};

// What a weight is multiplied as. Input: how a spike is written, as bits of all elements of a word; `kSpikeFactor` is
// what the sums must be multiplied by because of it.
struct MmaBFloat16 {
  using Sum = float;
  static constexpr bool kWide = false;
  static constexpr uint32_t kSpikes = 0x40004000u;  // 2.0: the one bit that is a float by itself
  static constexpr float kSpikeFactor = 0.5f;
#if defined(SNN_EMULATED)
  static float weight(uint32_t bits) { return BFloat16::lower(bits); }
  static float input(uint32_t bits) { return BFloat16::lower(bits); }
#endif
};
struct MmaFloat16 {
  using Sum = float;
  static constexpr bool kWide = false;
  static constexpr uint32_t kSpikes = 0x40004000u;  // 2.0 again
  static constexpr float kSpikeFactor = 0.5f;
#if defined(SNN_EMULATED)
  static float weight(uint32_t bits) { return Float16::lower(bits & 0xffffu); }
  static float input(uint32_t bits) { return Float16::lower(bits & 0xffffu); }
#endif
};
struct MmaInt8 {
  using Sum = int32_t;
  static constexpr bool kWide = true;  // 8-bit elements
  static constexpr uint32_t kSpikes = 0x01010101u;
  static constexpr float kSpikeFactor = 1.0f;
#if defined(SNN_EMULATED)
  static float weight(uint32_t bits) { return static_cast<int8_t>(bits); }
  static float input(uint32_t bits) { return static_cast<uint8_t>(bits); }
#endif
};

#if defined(SNN_EMULATED)

// Four matrices of 8 rows of 16 bytes; matrix i has its rows at the addresses of lanes 8 i to 8 i + 7.
inline Fragment load_matrices(const void* row) {
  struct Operand {
    const unsigned char* row;
    Fragment result;
  } mine{static_cast<const unsigned char*>(row), {}};
  check_aligned(row, 16);
  emulation::together<Operand>(mine, [](Operand* const (&lanes)[32]) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        std::memcpy(&lanes[lane]->result.reg[i], lanes[8 * i + lane / 4]->row + lane % 4 * 4, 4);
      }
    }
  });
  return mine.result;
}

template <class Sum>
struct MmaOperand {
  Fragment a, b;
  uint32_t metadata;
  Sum* sums;
};

inline uint32_t element_of(uint32_t reg, int i, int bytes) {
  return bytes == 2 ? reg >> 16 * i & 0xffffu : reg >> 8 * i & 0xffu;
}

// Element `slot` (stored slots of A) of row `row` of operand A or B.
template <class Sum>
uint32_t a_element(MmaOperand<Sum>* const (&lanes)[32], int row, int slot, int bytes) {
  const int byte = slot * bytes;
  return element_of(lanes[row % 8 * 4 + byte % 16 / 4]->a.reg[row / 8 + byte / 16 * 2], byte % 4 / bytes, bytes);
}
template <class Sum>
uint32_t b_element(MmaOperand<Sum>* const (&lanes)[32], int row, int slot, int bytes) {
  const int byte = slot * bytes;
  return element_of(lanes[row * 4 + byte % 16 / 4]->b.reg[byte / 16], byte % 4 / bytes, bytes);
}

// Metadata of the four slots from 4 * chunk on, of one of the 16 outputs.
template <class Sum>
uint32_t metadata_of(MmaOperand<Sum>* const (&lanes)[32], int row, int chunk, int bytes, int selector) {
  if (bytes == 2) {
    const uint32_t word = lanes[row % 8 * 4 + 2 * selector + chunk / 4]->metadata;
    return word >> (16 * (row / 8) + 4 * (chunk % 4)) & 15u;
  }
  return lanes[row % 8 * 4 + row / 8 + chunk / 8 * 2]->metadata >> 4 * (chunk % 8) & 15u;
}

// kSelector -1: a dense weight.
template <class Mma, int kSelector>
void model_of_mma(MmaOperand<typename Mma::Sum>* const (&lanes)[32]) {
  constexpr int kBytes = Mma::kWide ? 1 : 2;
  constexpr int kStored = 32 / kBytes;  // slots of A
  for (int output = 0; output < 16; ++output) {
    for (int row = 0; row < 8; ++row) {
      double sum = 0.0;
      for (int s = 0; s < kStored; ++s) {
        int slot = s;
        if constexpr (kSelector >= 0) {
          const uint32_t pair = metadata_of(lanes, output, s / 2, kBytes, kSelector);
          if ((pair & 3u) >= pair >> 2) throw std::runtime_error("mma.sp: positions that do not ascend");
          slot = s / 2 * 4 + (s % 2 == 0 ? pair & 3u : pair >> 2);
        }
        sum += static_cast<double>(Mma::weight(a_element(lanes, output, s, kBytes))) *
               Mma::input(b_element(lanes, row, slot, kBytes));
      }
      auto& result = lanes[output % 8 * 4 + row / 2]->sums[output / 8 * 2 + row % 2];
      result = static_cast<typename Mma::Sum>(static_cast<double>(result) + sum);
    }
  }
}

template <class Mma, int kSelector, class Sum>
void mma_sparse(Sum (&sums)[4], const Fragment& a, const Fragment& b, uint32_t metadata) {
  MmaOperand<Sum> mine{a, b, metadata, sums};
  emulation::together<MmaOperand<Sum>>(mine, model_of_mma<Mma, kSelector>);
}
template <class Mma, class Sum>
void mma_dense(Sum (&sums)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  MmaOperand<Sum> mine{a, {{b0, b1, 0, 0}}, 0, sums};
  emulation::together<MmaOperand<Sum>>(mine, model_of_mma<Mma, -1>);
}

#else

SNN_DEVICE Fragment load_matrices(const void* row) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.reg[0]), "=r"(f.reg[1]), "=r"(f.reg[2]), "=r"(f.reg[3])
               : "r"(shared_address(row)));
  return f;
}

#define SNN_MMA_SPARSE(SHAPE, TYPES, CONSTRAINT)                                                                     \
  asm volatile("mma.sp::ordered_metadata.sync.aligned." SHAPE ".row.col." TYPES                                      \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"                \
               : CONSTRAINT(sums[0]), CONSTRAINT(sums[1]), CONSTRAINT(sums[2]), CONSTRAINT(sums[3])                  \
               : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "r"(b.reg[0]), "r"(b.reg[1]),           \
                 "r"(b.reg[2]), "r"(b.reg[3]), "r"(metadata), "n"(kSelector))
#define SNN_MMA_DENSE(SHAPE, TYPES, CONSTRAINT)                                                                      \
  asm volatile("mma.sync.aligned." SHAPE ".row.col." TYPES                                                           \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                    \
               : CONSTRAINT(sums[0]), CONSTRAINT(sums[1]), CONSTRAINT(sums[2]), CONSTRAINT(sums[3])                  \
               : "r"(a.reg[0]), "r"(a.reg[1]), "r"(a.reg[2]), "r"(a.reg[3]), "r"(b0), "r"(b1))

template <class Mma, int kSelector, class Sum>
SNN_DEVICE void mma_sparse(Sum (&sums)[4], const Fragment& a, const Fragment& b, uint32_t metadata) {
  if constexpr (Mma::kWide) {
    static_assert(kSelector == 0, "all four threads hold metadata");
    SNN_MMA_SPARSE("m16n8k64", "s32.s8.u8.s32", "+r");
  } else if constexpr (__is_same(Mma, MmaBFloat16)) {
    SNN_MMA_SPARSE("m16n8k32", "f32.bf16.bf16.f32", "+f");
  } else {
    SNN_MMA_SPARSE("m16n8k32", "f32.f16.f16.f32", "+f");
  }
}

template <class Mma, class Sum>
SNN_DEVICE void mma_dense(Sum (&sums)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  if constexpr (Mma::kWide) {
    SNN_MMA_DENSE("m16n8k32", "s32.s8.u8.s32", "+r");
  } else if constexpr (__is_same(Mma, MmaBFloat16)) {
    SNN_MMA_DENSE("m16n8k16", "f32.bf16.bf16.f32", "+f");
  } else {
    SNN_MMA_DENSE("m16n8k16", "f32.f16.f16.f32", "+f");
  }
}

#undef SNN_MMA_SPARSE
#undef SNN_MMA_DENSE

#endif

// The four registers of operand B that stand for spikes: `words` of one row, reordered (nm_convert_kernels.cuh), 32 of
// 16-bit or 64 of 8-bit slots. Slot 4 q + b of an 8-bit word is bit q of byte b, slot 2 q + h of a 16-bit one bit q of
// half h; register j holds q = 4 j + t.
template <class Mma>
SNN_DEVICE Fragment spike_fragment(const uint32_t* words) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  Fragment f;
  if constexpr (Mma::kWide) {
    const uint32_t low = words[0] >> t, high = words[1] >> t;
    f.reg[0] = low & Mma::kSpikes;
    f.reg[1] = low >> 4 & Mma::kSpikes;
    f.reg[2] = high & Mma::kSpikes;
    f.reg[3] = high >> 4 & Mma::kSpikes;
  } else {
    const uint32_t word = words[0] >> t;
    SNN_UNROLL
    for (int j = 0; j < 4; ++j) f.reg[j] = word << (14 - 4 * j) & Mma::kSpikes;
  }
  return f;
}

}  // namespace snn_core
