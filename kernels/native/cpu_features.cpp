#include "native/cpu_features.h"

#include <cstdlib>
#include <cstring>

namespace snn_core {
namespace {

#if defined(SNN_HAS_AVX512)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

Isa best_isa() {
#if defined(SNN_HAS_AVX512_VBMI)
  if (has_avx512() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
      __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512bitalg") &&
      __builtin_cpu_supports("gfni") && __builtin_cpu_supports("bmi2")) {
    return Isa::kAvx512Vbmi;
  }
#endif
#if defined(SNN_HAS_AVX512)
  if (has_avx512()) return Isa::kAvx512;
#endif
#if defined(SNN_HAS_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return Isa::kAvx2;
  }
#endif
  return Isa::kBaseline;
}

const char* const kNames[] = {"baseline", "avx2", "avx512", "avx512_vbmi"};

}  // namespace

Isa active_isa() {
  static const Isa isa = [] {
    const Isa best = best_isa();
    const char* wanted = std::getenv("SNN_CPU_ISA");
    for (int i = 0; wanted != nullptr && i <= static_cast<int>(best); ++i) {
      if (std::strcmp(wanted, kNames[i]) == 0) return static_cast<Isa>(i);
    }
    return best;
  }();
  return isa;
}

}  // namespace snn_core

// For `snn doctor`, through ctypes.
extern "C" __attribute__((visibility("default"))) const char* snn_core_active_isa() {
  return snn_core::kNames[static_cast<int>(snn_core::active_isa())];
}
