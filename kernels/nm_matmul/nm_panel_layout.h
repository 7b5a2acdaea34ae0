// Where outputs stand in a panel of bfloat16, which the instruction set decides. Per-instruction-set sources alone, as
// native/vectors.h.
#pragma once

#include "native/vectors.h"

namespace snn_core {
namespace {

#if defined(__AVX512BF16__)
// Two rows at once: interleaving the 16-bit halves of two vectors (within 128 bits) brings the weights that two spikes
// have for an output side by side, and a dot product with ones adds both. Sums 0 to 15 are those of the lower halves.
constexpr bool kAddsPairs = true;
constexpr int kNarrowPairs = 2;  // four sums hide the latency of dot products; a row is two lines of the cache
constexpr int low_output(int lane) { return lane / 4 * 4 + lane % 4 * 2 + (lane % 4 < 2 ? 0 : kLanes - 4); }
constexpr int high_output(int lane) { return low_output(lane) + 1; }
#else
// One row at a time, by shift and mask.
constexpr bool kAddsPairs = false;
constexpr int kNarrowPairs = 4;
constexpr int low_output(int lane) { return lane; }
constexpr int high_output(int lane) { return kLanes + lane; }
#endif
constexpr int kWidePairs = 4;

}  // namespace
}  // namespace snn_core
