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

void list_pixels(const uint8_t* bits, int64_t pixels, int64_t stride, int64_t bytes, uint16_t* spikes,
                 uint32_t* offset) {
  uint16_t *out = spikes, base = 0;
  for (int64_t p = 0; p < pixels; ++p, base += static_cast<uint16_t>(8 * bytes)) {
    offset[p] = static_cast<uint32_t>(out - spikes);
    out = append_bytes(bits + p * stride, bytes, base, out);
  }
  offset[pixels] = static_cast<uint32_t>(out - spikes);
}

// The spikes under windows first .. last, an odd number with one more for the row of zeros; begin: where they start.
SNN_VECTOR_INLINE void list_windows(const NMEventWindows& r, int64_t first, int64_t last, const uint16_t** begin) {
  uint16_t* out = r.list;
  for (int64_t i = first; i < last; ++i) {
    const int64_t left = r.left + i * r.step;
    int64_t shift = -left * r.channels;
    *begin++ = out;
    for (int64_t line = 0; line < r.lines; ++line, shift += r.taps * r.channels) {
      const uint32_t* const offset = r.offset[line] + left;
      out = append_moved(r.spikes[line] + offset[0], offset[r.taps] - offset[0], static_cast<uint16_t>(shift), out);
    }
    *out = static_cast<uint16_t>(r.inputs);
    out += (out - begin[-1]) & 1;
  }
  *begin = out;
}

template <bool kWide, int kPairs>
void run_window_pairs(const NMEventWindows& r) {
  const char* const panel = static_cast<const char*>(r.panel);
  float* y = r.y;
  for (int64_t first = 0; first < r.count; first += kNMWindowsListed) {
    const int64_t last = r.count - first < kNMWindowsListed ? r.count : first + kNMWindowsListed;
    // Before any of their sums: what has just been written in vectors cannot be read element by element at once.
    const uint16_t* begin[kNMWindowsListed + 1];
    list_windows(r, first, last, begin);
    for (int64_t i = 0; i < last - first; ++i, y += r.ldy) {
      VectorF sum[2 * kPairs];
#pragma GCC unroll 8
      for (int q = 0; q < 2 * kPairs; ++q) sum[q] = VectorF{};
      add_rows<kWide, kPairs>(panel, begin[i], begin[i + 1], sum);
#pragma GCC unroll 8
      for (int q = 0; q < 2 * kPairs; ++q) store<false>(y + q * kLanes, sum[q]);
    }
  }
}

template <bool kWide>
void run_windows(const NMEventWindows& r) {
  switch (r.pairs) {
    case 1: return run_window_pairs<kWide, 1>(r);
    case 2: return run_window_pairs<kWide, 2>(r);
    case 3: return run_window_pairs<kWide, 3>(r);
    default: return run_window_pairs<kWide, 4>(r);
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

extern const NMEventKernel SNN_CONCAT(nm_event_, SNN_ISA) = {
    list, {run<false>, run<true>}, list_pixels, {run_windows<false>, run_windows<true>}, finish};

}  // namespace snn_core
