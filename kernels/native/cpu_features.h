// Which instruction set the CPU kernels use: the best this machine has, or the one SNN_CPU_ISA names.
#pragma once

namespace snn_core {

enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Vbmi = 3 };

// Read once; an instruction set that is unknown, not compiled in or not on this machine falls back to the best one.
Isa active_isa();

// The body of a function that returns the table `name` of the instruction set in use: SNN_PICK for tables that exist up
// to avx512, SNN_PICK_VBMI for those that have one for avx512_vbmi too.
#if defined(SNN_HAS_AVX512_VBMI)
#define SNN_CASE_VBMI(name) case Isa::kAvx512Vbmi: return name##_avx512_vbmi;
#else
#define SNN_CASE_VBMI(name)
#endif
#if defined(SNN_HAS_AVX512)
#define SNN_PICK_AVX512(name) case Isa::kAvx512Vbmi: case Isa::kAvx512: return name##_avx512;
#define SNN_ONLY_AVX512(name) case Isa::kAvx512: return name##_avx512;
#else
#define SNN_ONLY_AVX512(name)
#define SNN_PICK_AVX512(name)
#endif
#if defined(SNN_HAS_AVX2)
#define SNN_PICK_AVX2(name) case Isa::kAvx2: return name##_avx2;
#else
#define SNN_PICK_AVX2(name)
#endif
#define SNN_PICK(name)            \
  switch (active_isa()) {         \
    SNN_PICK_AVX512(name)         \
    SNN_PICK_AVX2(name)           \
    default: return name##_baseline; \
  }
#define SNN_PICK_VBMI(name)       \
  switch (active_isa()) {         \
    SNN_CASE_VBMI(name)           \
    SNN_ONLY_AVX512(name)         \
    SNN_PICK_AVX2(name)           \
    default: return name##_baseline; \
  }

}  // namespace snn_core
