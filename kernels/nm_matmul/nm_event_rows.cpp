// Bodies of NMEventKernel: lists of spikes, sums of weight rows, scale and bias.

#include "nm_matmul/nm_event_sums.h"
#include "nm_matmul/nm_panels.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

int64_t list(const uint8_t* row, const NMPiece* pieces, int64_t count, uint16_t* spikes) {
  uint16_t* out = spikes;
  for (int64_t p = 0; p < count; ++p) {
    out = append_bytes(row + pieces[p].byte, pieces[p].bytes, static_cast<uint16_t>(pieces[p].k), out);
  }
  return out - spikes;
}

template <int kVectors>
SNN_VECTOR_INLINE void prefetch_row(const float* y) {
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) __builtin_prefetch(y + i * kLanes, 1);
}

template <bool kWide, int kPairs>
void run_pairs(const NMEventRows& r) {
  const char* const panel = static_cast<const char*>(r.panel);
  for (int64_t row = 0; row < r.rows; ++row) {
    const uint32_t* const range = r.offset + row;
    const uint16_t* const last = r.spikes + range[1];
    float* const y = r.y + row * r.ldy;
    VectorF sum[2 * kPairs];
#pragma GCC unroll 8
    for (int q = 0; q < 2 * kPairs; ++q) sum[q] = r.accumulate ? load<VectorF>(y + q * kLanes) : VectorF{};
    // The processor is too busy with a row to ask in time for the sums of the next one.
    if (r.accumulate && row + 1 < r.rows) prefetch_row<2 * kPairs>(y + r.ldy);
    add_rows<kWide, kPairs>(panel, r.spikes + range[0], last, sum);
#pragma GCC unroll 8
    for (int q = 0; q < 2 * kPairs; ++q) store<false>(y + q * kLanes, sum[q]);
  }
}

template <bool kWide>
void run(const NMEventRows& r) {
  switch (r.pairs) {
    case 1: return run_pairs<kWide, 1>(r);
    case 2: return run_pairs<kWide, 2>(r);
    case 3: return run_pairs<kWide, 3>(r);
    default: return run_pairs<kWide, 4>(r);
  }
}

void finish(float* y, int64_t ldy, int64_t rows, int64_t n, const float* scale, const float* bias) {
  for (int64_t r = 0; r < rows; ++r, y += ldy) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      VectorF value = load<VectorF>(y + i);
      if (scale != nullptr) value = value * load<VectorF>(scale + i);
      if (bias != nullptr) value = value + load<VectorF>(bias + i);
      store<false>(y + i, value);
    }
    for (; i < n; ++i) {
      if (scale != nullptr) y[i] *= scale[i];
      if (bias != nullptr) y[i] += bias[i];
    }
  }
}

}  // namespace

extern const NMEventKernel SNN_CONCAT(nm_event_, SNN_ISA) = {list, {run<false>, run<true>}, finish};

}  // namespace snn_core
