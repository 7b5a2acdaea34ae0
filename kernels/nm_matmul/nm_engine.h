// How a product of packed spikes and a weight is cut into tasks, on the CPU.
//
// Rows are taken in blocks, blocks in waves whose intermediate data fit a bounded amount of memory. For every wave the
// spikes of its blocks are brought into the form that the path reads; then each task takes a range of outputs and a
// group of blocks. On the event path it decodes its panel of weights into a buffer of its thread, chunk of inputs by
// chunk, which stays in the L2 cache. Every sum is formed in one order, whatever the cut: results do not depend on it.
#pragma once

#include <cstdint>

#include "nm_matmul/nm_panels.h"
#include "nm_matmul/nm_rows.h"
#include "spike_pack/windows.h"

namespace snn_core {

const NMPanelKernel& nm_panel();
const NMEventKernel& nm_event();
// The kernel of a path other than the event path, or null where this instruction set has none for this weight.
const NMKernel* nm_kernel(int path, const NMWeight& w);

// Memory of the calling thread, aligned to 64 bytes, kept for its next call; `slot` tells apart what is used at once.
enum NMScratch { kPanelScratch, kSumScratch, kLifScratch, kListScratch, kScratchCount };
void* nm_scratch(NMScratch slot, int64_t bytes);

// Rows of a block: `steps` times `count` positions from `position` on; row i is that of time i / count and position
// position + i % count, the output row time * positions + position.
struct NMBlock {
  int64_t position, count, steps, positions;

  int64_t rows() const { return steps * count; }
  int64_t row(int64_t i) const {
    return steps == 1 ? position + i : i / count * positions + position + i % count;
  }
};

// Takes the sums of a block [rows, ld], scaled and with the bias, of outputs first <= o < last.
class NMSink {
 public:
  virtual ~NMSink() = default;
  // Where the sums may be formed at once (with a stride of outputs()), or null.
  virtual float* place(const NMBlock& block, int64_t first, int64_t last) const = 0;
  // `sums` may be overwritten; columns up to a multiple of 16 (event path: of a vector) exist.
  virtual void take(const NMBlock& block, int64_t first, int64_t last, float* sums, int64_t ld) const = 0;
};

struct NMProblem {
  NMWeight weight;
  SpikeWindows windows;
  int64_t groups;
  int64_t steps;       // rows of a position that a block must hold together
  const float *scale, *bias;
  int path;            // NMPath, not automatic
};

// The share of set bits, 0 to 1.
double nm_firing_rate(const SpikeWindows& windows);

// Scale and bias to the sums of a block of the event path, and on to the sink.
void nm_finish(const NMProblem& problem, const NMSink& sink, const NMBlock& block, int64_t first, int64_t last,
               float* sums, int64_t ld);

void nm_run(const NMProblem& problem, const NMSink& sink);

}  // namespace snn_core
