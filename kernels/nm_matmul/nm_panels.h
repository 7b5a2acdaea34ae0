// Row kernels of the event path: for each spike add a row of weights. Compiled once per instruction set.
//
// The weight is turned into panels: columns of some pairs of vectors of outputs, one row for each input. A panel holds
// bfloat16 (exact for bfloat16, int8 and e4m3 weights), two outputs a 32-bit lane (nm_panel_layout.h). For float32 and
// float16 weights it holds float32, outputs in their order.
#pragma once

#include <cstdint>

#include "nm_matmul/nm_rows.h"

namespace snn_core {

inline bool nm_wide_panel(int type) { return type == kNMFloat32 || type == kNMFloat16; }

// Decoding of weights, compressed or dense.
struct NMPanelKernel {
  int lanes;  // outputs of a vector; a panel of p pairs has 2 * p * lanes outputs
  int pairs[2];  // of a panel at most: bfloat16, float32
  // The weights of inputs first_k <= k < last_k and of `pairs` pairs of vectors of outputs from `first` on (those past
  // the last output are 0), in the panel's type.
  void (*decode)(const NMWeight& w, int64_t first, int pairs, int64_t first_k, int64_t last_k, void* panel);
  // Row `output` of the dense weight: as float32, or (bfloat16 and float16 weights) as the 16 bits that they are.
  void (*row_float)(const NMWeight& w, int64_t output, float* row);
  void (*row_bits)(const NMWeight& w, int64_t output, uint16_t* row);
};

// A run of bytes of a row of spikes whose first bit is input k of a chunk.
struct NMPiece {
  int64_t byte, bytes, k;
};

constexpr int64_t kSpikeSlack = 64;  // elements past the end of a list that may be overwritten

constexpr int kNMWindowLines = 16;   // of a window at most
constexpr int kNMWindowsListed = 8;  // whose spikes are listed before they are added

struct NMEventRows {
  const void* panel;
  int pairs;
  const uint16_t* spikes;   // inputs, counted from the panel's first
  const uint32_t* offset;   // of row r: spikes[offset[r]] to spikes[offset[r + 1]]
  int64_t rows;
  float* y;                 // [rows, 2 * pairs * lanes], stride ldy
  int64_t ldy;
  bool accumulate;          // y holds sums already
};

// Windows side by side in one row of outputs. The spikes of a row of the image are listed once for all windows on it:
// what a window takes of a row is one run of its list.
struct NMEventWindows {
  const void* panel;  // of all inputs, and a row of zeros behind them
  int pairs;
  int64_t inputs;
  int64_t lines, taps, channels;            // rows and columns of a window; inputs of a pixel, a multiple of 8
  const uint16_t* spikes[kNMWindowLines];   // pixel * channels + channel, of the image's row under each of the window's
  const uint32_t* offset[kNMWindowLines];   // of pixel p, outside too: spikes[offset[p]] to [p + 1]
  int64_t left, step, count;                // pixel at the first window's left, outside or not; to the next; windows
  uint16_t* list;                           // scratch: kNMWindowsListed * (inputs + 1) + kSpikeSlack
  float* y;                                 // [count, 2 * pairs * lanes], stride ldy
  int64_t ldy;
};

struct NMEventKernel {
  // The positions of the set bits of a row, ascending; returns their number. Writes up to kSpikeSlack further ones.
  int64_t (*list)(const uint8_t* row, const NMPiece* pieces, int64_t count, uint16_t* spikes);
  void (*run[2])(const NMEventRows& rows);  // [float32 panel]
  // The spikes of `pixels` pixels of `bytes` bytes, `stride` bytes apart, and offset[p] for 0 <= p <= pixels. Writes
  // up to kSpikeSlack further spikes.
  void (*list_pixels)(const uint8_t* bits, int64_t pixels, int64_t stride, int64_t bytes, uint16_t* spikes,
                      uint32_t* offset);
  void (*run_windows[2])(const NMEventWindows& windows);  // [float32 panel]
  // y[r, i] = y[r, i] * scale[i] + bias[i], each where it is not null.
  void (*finish)(float* y, int64_t ldy, int64_t rows, int64_t n, const float* scale, const float* bias);
};

#define SNN_DECLARE_EVENT(isa)                 \
  extern const NMPanelKernel nm_panel_##isa;   \
  extern const NMEventKernel nm_event_##isa;

SNN_DECLARE_EVENT(baseline)
#if defined(SNN_HAS_AVX2)
SNN_DECLARE_EVENT(avx2)
#endif
#if defined(SNN_HAS_AVX512)
SNN_DECLARE_EVENT(avx512)
#endif
#if defined(SNN_HAS_AVX512_VBMI)
SNN_DECLARE_EVENT(avx512_vbmi)
#endif
#undef SNN_DECLARE_EVENT

}  // namespace snn_core
