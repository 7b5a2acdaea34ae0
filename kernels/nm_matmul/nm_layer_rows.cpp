// Body of NMLayerKernel. Compiled once per instruction set.

#include "nm_matmul/nm_event_sums.h"
#include "nm_matmul/nm_layer.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

// The spikes of some steps of a position; begin[i] .. begin[i + 1] are those of step i.
SNN_VECTOR_INLINE void list_steps(const NMLayerRow& r, const uint8_t* image, int64_t steps, const uint16_t** begin) {
  uint16_t* out = r.list;
  begin[0] = out;
  for (int64_t i = 0; i < steps; ++i, image += r.step_bytes) {
    uint16_t base = 0;
    for (int64_t line = 0; line < r.lines; ++line, base += static_cast<uint16_t>(8 * r.run_bytes)) {
      out = append_bytes(image + line * r.line_bytes, r.run_bytes, base, out);
    }
    begin[i + 1] = out;
  }
}

template <int kPairs, bool kDecayInput, bool kDivide, bool kSoftReset>
void run_pairs(const NMLayerRow& r, const LifParameters& p) {
  constexpr int kVectors = 2 * kPairs;
  const char* const panel = static_cast<const char*>(r.panel);
  for (int64_t position = 0; position < r.positions; ++position) {
    VectorF state[kVectors];
#pragma GCC unroll 8
    for (int q = 0; q < kVectors; ++q) {
      state[q] = r.v0 != nullptr ? load<VectorF>(r.v0 + position * r.outputs + q * kLanes) : VectorF{} + p.v_reset;
    }
    for (int64_t t = 0; t < r.steps; t += kLayerSteps) {
      const int64_t steps = r.steps - t < kLayerSteps ? r.steps - t : kLayerSteps;
      const uint16_t* begin[kLayerSteps + 1];
      list_steps(r, r.image + t * r.step_bytes + position * r.position_bytes, steps, begin);
      uint8_t* bits = r.bits + t * r.bits_step + position * r.outputs / 8;
      for (int64_t i = 0; i < steps; ++i, bits += r.bits_step) {
        VectorF sum[kVectors];
#pragma GCC unroll 8
        for (int q = 0; q < kVectors; ++q) sum[q] = VectorF{};
        add_rows<false, kPairs>(panel, begin[i], begin[i + 1], sum);
        uint32_t word = 0;
#pragma GCC unroll 8
        for (int q = 0; q < kVectors; ++q) {
          if (r.scale != nullptr) sum[q] = sum[q] * load<VectorF>(r.scale + q * kLanes);
          if (r.bias != nullptr) sum[q] = sum[q] + load<VectorF>(r.bias + q * kLanes);
          const VectorF h = lif_charge<kDecayInput, kDivide>(sum[q], state[q], p);
          state[q] = lif_reset<kSoftReset>(h, p);
          const uint32_t fired = lane_bits(h >= p.v_threshold);
          word = q % 2 == 0 ? fired : word | fired << kLanes;
          if (q % 2 == 1) __builtin_memcpy(bits + q / 2 * (kLanes / 4), &word, kLanes / 4);
        }
      }
    }
#pragma GCC unroll 8
    for (int q = 0; q < kVectors; ++q) store<false>(r.v + position * r.outputs + q * kLanes, state[q]);
  }
}

template <bool kDecayInput, bool kDivide, bool kSoftReset>
void run_neuron(const NMLayerRow& r, const LifParameters& p) {
  switch (r.pairs) {
    case 1: return run_pairs<1, kDecayInput, kDivide, kSoftReset>(r, p);
    case 2: return run_pairs<2, kDecayInput, kDivide, kSoftReset>(r, p);
#if !defined(__AVX512BF16__)
    case 3: return run_pairs<3, kDecayInput, kDivide, kSoftReset>(r, p);
    default: return run_pairs<4, kDecayInput, kDivide, kSoftReset>(r, p);
#endif
  }
}

void run(const NMLayerRow& r, const LifParameters& p, const LifVariant& variant) {
  static constexpr void (*kVariants[2][2][2])(const NMLayerRow&, const LifParameters&) = {
      {{run_neuron<false, false, false>, run_neuron<false, false, true>},
       {run_neuron<false, true, false>, run_neuron<false, true, true>}},
      {{run_neuron<true, false, false>, run_neuron<true, false, true>},
       {run_neuron<true, true, false>, run_neuron<true, true, true>}}};
  kVariants[variant.decay_input][variant.divide][variant.soft_reset](r, p);
}

}  // namespace

extern const NMLayerKernel SNN_CONCAT(nm_layer_, SNN_ISA) = run;

}  // namespace snn_core
