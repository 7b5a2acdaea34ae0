// Which instruction set the CPU kernels use: the best this machine has, or the one SNN_CPU_ISA names.
#pragma once

namespace snn_core {

enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// Read once; an instruction set that is unknown, not compiled in or not on this machine falls back to the best one.
Isa active_isa();

}  // namespace snn_core
