// Row kernels of packed spikes x N:M weights: a block of spike rows times a range of outputs, no allocation, no threads,
// nothing kept between calls. The compressed weight is read as it lies; what a kernel decodes of it stays in registers
// or on its stack. Compiled once per instruction set (nm_lookup_rows.cpp, nm_few_rows.cpp, nm_kept_rows.cpp,
// nm_dense_rows.cpp).
#pragma once

#include <cstdint>

#include "native/cpu_features.h"

namespace snn_core {

enum NMType : int { kNMFloat32, kNMBFloat16, kNMFloat16, kNMInt8, kNMFloat8, kNMTypeCount };  // Float8: e4m3fn
constexpr int kNMTypeBytes[kNMTypeCount] = {4, 2, 2, 1, 1};

// The `path` argument of the operators.
enum NMPath : int { kNMAutomatic = 0, kNMEvent = 1, kNMLookup = 2, kNMFewRows = 3, kNMKept = 4 };

// A weight [outputs, k], k = segments * segment: `segments` kernel positions of `segment` channels each (a Linear has
// one). Rows of spikes start a new byte at each segment, rows of weights run on.
struct NMWeight {
  const void* values;      // [outputs * k / m, n] kept values, or [outputs, k] of a dense weight
  int type;                // NMType
  const uint8_t* indices;  // positions in the blocks, ceil(log2(m)) bits each, low end first; null: dense
  int64_t index_bytes;     // size of `indices`: nothing is read past it
  int n, m;                // 0 and 0: dense; m divides segment
  int64_t outputs;
  int64_t segments, segment;
  bool finite;             // known to hold no NaN or infinity, where it was asked for

  int64_t k() const { return segments * segment; }
  int64_t segment_bytes() const { return (segment + 7) / 8; }
  int64_t row_bytes() const { return segments * segment_bytes(); }
};

constexpr int kNMBlockRows = 64;   // rows of a block at most
constexpr int kNMWideBlocks = 4;   // blocks that some weights are multiplied with at once
constexpr int kNMOutputStep = 16;  // ranges of outputs should start at multiples of this

// Bytes of a prepared block, whatever its path; aligned to 64 bytes.
inline int64_t nm_block_bytes(const NMWeight& w) { return kNMBlockRows * ((w.row_bytes() + 63) / 64 * 64); }

// One path of one instruction set. A null `run`: this instruction set has none.
struct NMKernel {
  // Whether the path takes this weight.
  bool (*takes)(const NMWeight& w);
  // Brings a block of 1 to 64 rows of packed spikes, row r at `bits + r * stride` with w.row_bytes() bytes each, into
  // the order that `run` reads. Bits past a segment's channels count as 0. Once for all ranges of outputs.
  void (*prepare)(const NMWeight& w, const uint8_t* bits, int64_t stride, int rows, uint8_t* block);
  // y[r * ldy + o] = sum over the spikes of row r of weight[o], for first <= o < last, in float32: no scale, no bias.
  // The sums of a row do not depend on the other rows, on their number or on the range.
  void (*run)(const NMWeight& w, const uint8_t* block, int rows, int64_t first, int64_t last, float* y, int64_t ldy);
  // What NMWeight::finite may be set to for `run` on these outputs; null: it does not care.
  bool (*finite)(const NMWeight& w, int64_t first, int64_t last) = nullptr;
  // The same sums, bit for bit, of kNMWideBlocks blocks of `rows` rows each, block i to y[i]; null: there is none. It
  // serves the weights that `takes_wide` says.
  bool (*takes_wide)(const NMWeight& w) = nullptr;
  void (*run_wide)(const NMWeight& w, const uint8_t* const* blocks, int rows, int64_t first, int64_t last,
                   float* const* y, int64_t ldy) = nullptr;
};

// Dense activations x few rows, compressed weights of one segment.
constexpr int kNMDenseRows = 16;
struct NMDenseKernel {
  bool (*takes)(const NMWeight& w);
  // Bytes of the prepared rows; aligned to 64 bytes.
  int64_t (*prepared_bytes)(const NMWeight& w, int rows);
  // x: 1 to 16 rows of k elements of `type` (float32, bfloat16 or float16), row r at element r * ldx.
  void (*prepare)(const NMWeight& w, const void* x, int type, int64_t ldx, int rows, void* prepared);
  void (*run)(const NMWeight& w, const void* prepared, int type, int rows, int64_t first, int64_t last, float* y,
              int64_t ldy);
};

#define SNN_DECLARE_NM(isa)                 \
  extern const NMKernel nm_lookup_##isa;    \
  extern const NMKernel nm_few_rows_##isa;  \
  extern const NMKernel nm_kept_##isa;      \
  extern const NMDenseKernel nm_dense_##isa;

SNN_DECLARE_NM(baseline)
#if defined(SNN_HAS_AVX2)
SNN_DECLARE_NM(avx2)
#endif
#if defined(SNN_HAS_AVX512)
SNN_DECLARE_NM(avx512)
#endif
#if defined(SNN_HAS_AVX512_VBMI)
SNN_DECLARE_NM(avx512_vbmi)
#endif
#undef SNN_DECLARE_NM

}  // namespace snn_core
