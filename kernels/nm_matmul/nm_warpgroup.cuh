// wgmma.sp (sm_90a): a warpgroup, 128 threads, multiplies 64 outputs of a 2:4 weight by 128 rows, both in shared
// memory, and goes on while the tensor cores work. The emulation multiplies no sooner than it is waited for, from what
// the descriptors say, so that a buffer that is written too early gives wrong sums.
//
// Operands lie in shared memory as nm_gemm_kernels.cuh copies them: rows of 64 (weight) or 128 bytes (input) of K whose
// 16-byte units are permuted as the hardware's 64-byte and 128-byte swizzles do it. Metadata and sums are those of
// mma.sp for the 16 outputs of each warp (CUTLASS: ELayout_64x32, ELayout_64x64).
#pragma once

#include "nm_matmul/nm_fragments.cuh"

namespace snn_core {

struct MmaFloat8 {
  using Sum = float;
  static constexpr bool kWide = true;
  static constexpr uint32_t kSpikes = 0x40404040u;  // 2.0
  static constexpr float kSpikeFactor = 0.5f;
#if defined(SNN_EMULATED)
  static float of(uint32_t bits) {  // as float_of_e4m3 (nm_elements.cuh)
    if ((bits & 0x7fu) == 0x7fu) return __builtin_nanf("");
    return float_of_bits((bits & 0x80u) << 24 | (bits & 0x7fu) << 20) * float_of_bits((127u + 120u) << 23);
  }
  static float weight(uint32_t bits) { return of(bits & 0xffu); }
  static float input(uint32_t bits) { return of(bits & 0xffu); }
#endif
};

constexpr int kWarpgroup = 128;
constexpr int kWarpgroupRows = 128;  // of the input

// Where an operand lies: start, bytes between groups of eight rows, swizzle (1: of 128 bytes, 2: of 64).
SNN_DEVICE uint64_t operand_descriptor(const void* shared, int row_bytes) {
  const uint64_t start = (shared_address(shared) & 0x3ffffu) >> 4;
  const uint64_t eight_rows = static_cast<uint64_t>(row_bytes) * 8 >> 4;
  const uint64_t swizzle = row_bytes == 128 ? 1 : 2;
  return start | uint64_t{1} << 16 | eight_rows << 32 | swizzle << 62;  // the 1 is not used with a swizzle
}

#if defined(SNN_EMULATED)

template <class Sum>
struct WarpgroupOperand {
  uint64_t weight, input;
  uint32_t metadata;
  Sum (*sums)[4];
};

// Byte `k` of row `row` of an operand.
inline unsigned char operand_byte(uint64_t descriptor, int row, int k) {
  const int bytes = descriptor >> 62 == 1 ? 128 : 64;
  uint32_t at = static_cast<uint32_t>(descriptor & 0x3fffu) << 4;
  at += row / 8 * static_cast<uint32_t>((descriptor >> 32 & 0x3fffu) << 4) + row % 8 * bytes + k;
  at ^= (at >> 7 & (bytes == 128 ? 7u : 3u)) << 4;
  return emulation::block().shared()[at];
}

inline uint32_t operand_element(uint64_t descriptor, int row, int slot, int bytes) {
  uint32_t element = 0;
  for (int i = 0; i < bytes; ++i) element |= static_cast<uint32_t>(operand_byte(descriptor, row, slot * bytes + i)) << 8 * i;
  return element;
}

template <class Mma, int kSelector>
void model_of_wgmma(const std::vector<WarpgroupOperand<typename Mma::Sum>>& threads) {
  using Sum = typename Mma::Sum;
  constexpr int kBytes = Mma::kWide ? 1 : 2;
  for (int warp = 0; warp < 4; ++warp) {
    MmaOperand<Sum> operands[32] = {};
    MmaOperand<Sum>* lanes[32];
    for (int lane = 0; lane < 32; ++lane) {
      operands[lane].metadata = threads[warp * 32 + lane].metadata;
      lanes[lane] = &operands[lane];
    }
    for (int output = 0; output < 16; ++output) {
      for (int row = 0; row < kWarpgroupRows; ++row) {
        double sum = 0.0;
        for (int s = 0; s < 32 / kBytes; ++s) {
          const uint32_t pair = metadata_of(lanes, output, s / 2, kBytes, kSelector);
          if ((pair & 3u) >= pair >> 2) throw std::runtime_error("wgmma.sp: positions that do not ascend");
          const int slot = s / 2 * 4 + (s % 2 == 0 ? pair & 3u : pair >> 2);
          sum += static_cast<double>(Mma::weight(operand_element(threads[0].weight, warp * 16 + output, s, kBytes))) *
                 Mma::input(operand_element(threads[0].input, row, slot, kBytes));
        }
        Sum& result = threads[warp * 32 + output % 8 * 4 + row % 8 / 2].sums[row / 8][output / 8 * 2 + row % 2];
        result = static_cast<Sum>(static_cast<double>(result) + sum);
      }
    }
  }
}

template <class Mma, int kSelector, class Sum>
void multiply_async(Sum (&sums)[kWarpgroupRows / 8][4], uint64_t weight, uint64_t input, uint32_t metadata) {
  using Operand = WarpgroupOperand<Sum>;
  Operand mine{weight, input, metadata, sums};
  emulation::block().together<Operand, kWarpgroup>(mine, [](Operand* const (&threads)[kWarpgroup]) {
    std::vector<Operand> kept;
    for (const Operand* thread : threads) kept.push_back(*thread);
    auto& started = emulation::block().started(kWarpgroup);
    if (started.empty()) started.emplace_back();
    started.back().push_back([kept] { model_of_wgmma<Mma, kSelector>(kept); });
  });
}
inline void begin_products() {}
inline void commit_products() {
  int nothing = 0;
  emulation::block().together<int, kWarpgroup>(nothing, [](int* const (&)[kWarpgroup]) {
    emulation::block().started(kWarpgroup).emplace_back();  // the last one is open
  });
}
template <int kPending>
void wait_for_products() {
  int nothing = 0;
  emulation::block().together<int, kWarpgroup>(nothing, [](int* const (&)[kWarpgroup]) {
    auto& started = emulation::block().started(kWarpgroup);
    for (; started.size() > kPending + 1; started.pop_front()) {
      for (const auto& product : started.front()) product();
    }
  });
}
inline void show_to_tensor_cores() {}

#else

// Before the first product: registers and shared memory that it reads are as written.
SNN_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SNN_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
SNN_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// What this thread wrote to shared memory, before a barrier.
SNN_DEVICE void show_to_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define SNN_FOUR(C, n) C(sums[n][0]), C(sums[n][1]), C(sums[n][2]), C(sums[n][3])
#define SNN_WGMMA(SHAPE, TYPES, C, TAIL)                                                                             \
  asm volatile(                                                                                                      \
      "wgmma.mma_async.sp.sync.aligned." SHAPE "." TYPES                                                             \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "  \
      "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "    \
      "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "        \
      "%64, %65, %66, %67, 1" TAIL ";"                                                                               \
      : SNN_FOUR(C, 0), SNN_FOUR(C, 1), SNN_FOUR(C, 2), SNN_FOUR(C, 3), SNN_FOUR(C, 4), SNN_FOUR(C, 5),              \
        SNN_FOUR(C, 6), SNN_FOUR(C, 7), SNN_FOUR(C, 8), SNN_FOUR(C, 9), SNN_FOUR(C, 10), SNN_FOUR(C, 11),            \
        SNN_FOUR(C, 12), SNN_FOUR(C, 13), SNN_FOUR(C, 14), SNN_FOUR(C, 15)                                           \
      : "l"(weight), "l"(input), "r"(metadata), "n"(kSelector))

// sums += 64 outputs of `weight` x 128 rows of `input`, over 32 (16-bit) or 64 (8-bit) slots of K.
template <class Mma, int kSelector, class Sum>
SNN_DEVICE void multiply_async(Sum (&sums)[kWarpgroupRows / 8][4], uint64_t weight, uint64_t input, uint32_t metadata) {
  if constexpr (__is_same(Mma, MmaBFloat16)) {
    SNN_WGMMA("m64n128k32", "f32.bf16.bf16", "+f", ", 1, 1, 0, 0");
  } else if constexpr (__is_same(Mma, MmaFloat16)) {
    SNN_WGMMA("m64n128k32", "f32.f16.f16", "+f", ", 1, 1, 0, 0");
  } else if constexpr (__is_same(Mma, MmaFloat8)) {
    SNN_WGMMA("m64n128k64", "f32.e4m3.e4m3", "+f", ", 1, 1");
  } else {
    SNN_WGMMA("m64n128k64", "s32.s8.u8", "+r", "");
  }
}

#undef SNN_WGMMA
#undef SNN_FOUR

#endif

}  // namespace snn_core
