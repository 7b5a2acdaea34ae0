#include "nm_matmul/nm_layer.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "native/cpu_features.h"

namespace snn_core {
namespace {

constexpr int64_t kPanelBytes = 128 << 10;  // of all inputs: beside the rest in the L2 cache
constexpr int64_t kImageBytes = 256 << 10;  // of a sample through all steps, with its padding
constexpr int64_t kMostRanges = 2;          // of outputs: each lists the spikes again
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kGroupRows = 512;         // rows for which decoding a panel pays
constexpr int64_t kGrainWork = 1 << 16;     // bytes of spikes under windows below which a thread is not worth waking

NMLayerKernel nm_layer() { SNN_PICK_VBMI(nm_layer) }

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t panel_outputs() { return 2 * nm_panel().lanes * nm_panel().pairs[0]; }

// The bits of a sample through all steps, its padding written out where it has one.
class Image {
 public:
  Image(const SpikeWindows& windows, int64_t steps, uint8_t* buffer)
      : w_(windows), steps_(steps), samples_(windows.batch / steps), buffer_(buffer) {}

  static int64_t bytes(const SpikeWindows& w, int64_t steps) {
    return steps * (w.height + 2 * w.pad_h) * (w.width + 2 * w.pad_w) * w.bytes;
  }
  static bool fits(const SpikeWindows& w, int64_t steps) {
    int64_t all = steps;  // products of hostile sizes must not wrap around
    for (const int64_t factor : {w.height + 2 * w.pad_h, w.width + 2 * w.pad_w, w.bytes}) {
      if (__builtin_mul_overflow(all, factor, &all)) return false;
    }
    return all <= kImageBytes;
  }

  bool padded() const { return w_.pad_h != 0 || w_.pad_w != 0; }
  int64_t line() const { return padded() ? (w_.width + 2 * w_.pad_w) * w_.bytes : w_.stride_h; }
  int64_t step() const { return padded() ? (w_.height + 2 * w_.pad_h) * line() : samples_ * w_.stride_b; }

  const uint8_t* of(int64_t sample) {
    const uint8_t* const bits = w_.bits + sample * w_.stride_b;
    if (!padded()) return bits;
    if (sample == held_) return buffer_;
    held_ = sample;
    std::memset(buffer_, 0, bytes(w_, steps_));
    for (int64_t t = 0; t < steps_; ++t) {
      for (int64_t y = 0; y < w_.height; ++y) {
        std::memcpy(buffer_ + t * step() + (y + w_.pad_h) * line() + w_.pad_w * w_.bytes,
                    bits + t * samples_ * w_.stride_b + y * w_.stride_h, w_.width * w_.bytes);
      }
    }
    return buffer_;
  }

 private:
  const SpikeWindows& w_;
  int64_t steps_, samples_, held_ = -1;
  uint8_t* buffer_;
};

// Outputs first <= o < last of output rows begin <= row < end, counted over all samples.
void run_task(const NMProblem& p, const NMLayerResult& result, int64_t first, int64_t last, int64_t begin,
              int64_t end) {
  const SpikeWindows& w = p.windows;
  const int64_t k = p.weight.k(), outputs = p.weight.outputs, samples = w.batch / p.steps;
  const int pairs = static_cast<int>((last - first) / (2 * nm_panel().lanes));
  void* const panel = nm_scratch(kPanelScratch, k * (last - first) * 2);
  auto* const list = static_cast<uint16_t*>(nm_scratch(kSumScratch, 2 * (kLayerSteps * k + kSpikeSlack)));
  Image image(w, p.steps, static_cast<uint8_t*>(nm_scratch(kLifScratch, Image::bytes(w, p.steps))));
  nm_panel().decode(p.weight, first, pairs, 0, k, panel);
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* const sample = image.of(row / w.out_h);
    const int64_t place = row * w.out_w * outputs + first;
    nm_layer()({panel, pairs, sample + row % w.out_h * w.step_h * image.line(), image.step(), w.step_w * w.bytes,
                w.dilation_h * image.line(), w.kernel_h, w.kernel_w * w.bytes, w.out_w, p.steps,
                p.scale != nullptr ? p.scale + first : nullptr, p.bias != nullptr ? p.bias + first : nullptr,
                result.bits + place / 8, samples * w.pixels() * outputs / 8, outputs,
                result.v0 != nullptr ? result.v0 + place : nullptr, result.v_last + place, list},
               result.neuron, result.variant);
  }
}

}  // namespace

bool nm_takes_layer(const NMProblem& p) {
  const SpikeWindows& w = p.windows;
  const int64_t outputs = p.weight.outputs, width = panel_outputs(), k = p.weight.k();
  return p.path == kNMEvent && p.groups == 1 && !nm_wide_panel(p.weight.type) && p.weight.segment % 8 == 0 &&
         outputs % (2 * nm_panel().lanes) == 0 && outputs <= kMostRanges * width &&
         k <= kPanelBytes / (2 * std::min(width, std::max<int64_t>(outputs, 1))) &&
         (w.kernel_w == 1 || w.dilation_w == 1) && (w.stride_w == w.bytes || w.width == 1) &&
         Image::fits(w, p.steps);
}

void nm_run_layer(const NMProblem& p, const NMLayerResult& result) {
  const SpikeWindows& w = p.windows;
  const int64_t outputs = p.weight.outputs, width = panel_outputs(), ranges = divide_up(outputs, width);
  const int64_t rows = w.batch / p.steps * w.out_h;  // of outputs
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = threads == 1 ? 1 : divide_up(kTasksPerThread * threads, ranges);
  const int64_t paying = divide_up(w.rows(), kGroupRows);
  const int64_t share = divide_up(rows, std::clamp<int64_t>(std::min(wanted, paying), 1, rows));
  const int64_t shares = divide_up(rows, share);
  const int64_t work = std::max<int64_t>(1, share * w.out_w * p.steps * w.row_bytes());
  torch::stable::parallel_for(0, ranges * shares, std::max<int64_t>(1, kGrainWork / work), [&](int64_t b, int64_t e) {
    for (int64_t task = b; task < e; ++task) {
      const int64_t first = task / shares * width, begin = task % shares * share;
      run_task(p, result, first, std::min(first + width, outputs), begin, std::min(begin + share, rows));
    }
  });
}

}  // namespace snn_core
