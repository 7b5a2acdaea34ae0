#include "nm_matmul/nm_windows.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace snn_core {
namespace {

constexpr int64_t kPanelBytes = 320 << 10;  // of all inputs: beside the lists in the L2 cache
constexpr int64_t kListBytes = 512 << 10;   // of the rows under a row of windows, at all steps: all inputs spikes
constexpr int64_t kMostLists = 8;           // of pixels for each window
constexpr int64_t kGrainBytes = 1 << 16;    // of spikes under windows below which a thread is not worth waking

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Lists of the spikes of image rows, made when the first window asks for one and kept until the windows have moved on.
class RowLists {
 public:
  RowLists(const SpikeWindows& w, int64_t steps)
      : w_(w), slots_(slots(w)), pixels_(w.width + 2 * w.pad_w), most_(w.width * 8 * w.segment_bytes + kSpikeSlack) {
    auto* const memory = static_cast<char*>(nm_scratch(kListScratch, bytes(w, steps)));
    held_ = reinterpret_cast<int64_t*>(memory);
    nothing_ = reinterpret_cast<uint32_t*>(held_ + steps * slots_);
    offset_ = nothing_ + pixels_ + 1;
    spikes_ = reinterpret_cast<uint16_t*>(offset_ + steps * slots_ * (pixels_ + 1));
    std::fill_n(held_, steps * slots_, -1);
    std::fill_n(nothing_, pixels_ + 1, 0);
  }

  // Of scratch, or more than anything where it would be too much to count.
  static int64_t bytes(const SpikeWindows& w, int64_t steps) {
    const int64_t of_pixels = 16 * w.segment_bytes * w.width + 4 * (w.width + 2 * w.pad_w + 1);
    int64_t all = 0;
    const bool fits = !__builtin_mul_overflow(steps, slots(w), &all) &&
                      !__builtin_mul_overflow(all + 1, of_pixels + 2 * kSpikeSlack + 8, &all);
    return fits ? all : INT64_MAX;
  }

  // Sets the lists of the image's rows under the windows of row `oh` of outputs.
  void under(int64_t step, int64_t image, int64_t oh, NMEventWindows& r) {
    for (int64_t i = 0; i < w_.kernel_h; ++i) {
      const int64_t h = oh * w_.step_h - w_.pad_h + i * w_.dilation_h;
      if (h < 0 || h >= w_.height) {
        r.spikes[i] = spikes_, r.offset[i] = nothing_ + w_.pad_w;
        continue;
      }
      const int64_t slot = step * slots_ + h % slots_, key = image * w_.height + h;
      uint16_t* const spikes = spikes_ + slot * most_;
      uint32_t* const offset = offset_ + slot * (pixels_ + 1) + w_.pad_w;
      r.spikes[i] = spikes, r.offset[i] = offset;
      if (held_[slot] == key) continue;
      held_[slot] = key;
      nm_event().list_pixels(w_.pixel(image, h, 0), w_.width, w_.stride_w, w_.segment_bytes, spikes, offset);
      std::fill_n(offset - w_.pad_w, w_.pad_w, 0);
      std::fill_n(offset + w_.width + 1, w_.pad_w, offset[w_.width]);
    }
  }

 private:
  static int64_t slots(const SpikeWindows& w) { return (w.kernel_h - 1) * w.dilation_h + 1; }

  const SpikeWindows& w_;
  int64_t slots_, pixels_, most_;  // pixels: with padding
  int64_t* held_;                  // [steps, slots]: image * height + row, or -1
  uint32_t *nothing_, *offset_;    // [pixels + 1] of a row outside; [steps, slots, pixels + 1]
  uint16_t* spikes_;               // [steps, slots, most]
};

// Outputs first <= o < last of rows begin <= row < end of outputs, counted over all samples.
void run_task(const NMProblem& p, const SpikeWindows& w, const NMSink& sink, int64_t first, int64_t last, int64_t begin,
              int64_t end) {
  const bool wide = nm_wide_panel(p.weight.type);
  const int64_t lanes = nm_panel().lanes, k = p.weight.k(), samples = w.batch / p.steps;
  const int pairs = static_cast<int>(divide_up(last - first, 2 * lanes));
  const int64_t width = 2 * lanes * pairs, row_bytes = width * (wide ? 4 : 2);
  const int64_t listed = kNMWindowsListed * (k + 1) + kSpikeSlack;
  auto* const panel = static_cast<char*>(nm_scratch(kPanelScratch, (k + 1) * row_bytes + 2 * listed));
  // Outputs of the next group that the last vector covers are computed and dropped.
  nm_panel().decode(p.weight, first, pairs, 0, k, panel);
  std::memset(panel + k * row_bytes, 0, row_bytes);
  auto* const list = reinterpret_cast<uint16_t*>(panel + (k + 1) * row_bytes);
  RowLists lists(w, p.steps);
  // Blocks of whole rows of outputs, or of a piece of one.
  const int64_t most = std::max<int64_t>(1, kNMBlockRows / p.steps), piece = std::min(w.out_w, most);
  const int64_t rows_at_once = std::max<int64_t>(1, most / w.out_w);
  auto* const sums = static_cast<float*>(nm_scratch(kSumScratch, rows_at_once * piece * p.steps * width * 4));
  for (int64_t row = begin; row < end; row += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, end - row);
    for (int64_t x = 0; x < w.out_w; x += piece) {
      const int64_t count = std::min(piece, w.out_w - x);
      const NMBlock block{row * w.out_w + x, rows * count, p.steps, samples * w.pixels()};
      float* const place = last - first == width ? sink.place(block, first, last) : nullptr;
      float* const target = place != nullptr ? place : sums;
      const int64_t ld = place != nullptr ? p.weight.outputs : width;
      NMEventWindows r{panel, pairs, k, w.kernel_h, w.kernel_w, 8 * w.segment_bytes, {}, {}, x * w.step_w - w.pad_w,
                       w.step_w, count, list, target, ld};
      for (int64_t step = 0; step < p.steps; ++step) {
        for (int64_t i = row; i < row + rows; ++i, r.y += count * ld) {
          lists.under(step, step * samples + i / w.out_h, i % w.out_h, r);
          nm_event().run_windows[wide](r);
        }
      }
      nm_finish(p, sink, block, first, last, target, ld);
    }
  }
}

}  // namespace

bool nm_takes_windows(const NMProblem& p) {
  const SpikeWindows& w = p.windows;
  const int64_t element = nm_wide_panel(p.weight.type) ? 4 : 2;
  const int64_t width = 2 * nm_panel().lanes * nm_panel().pairs[element == 4];
  // Each range of outputs lists the pixels again, and steps leave few windows on each of them.
  const int64_t pixels = std::min(w.step_h, kMostLists) * std::min(w.step_w, kMostLists);
  if (divide_up(p.weight.outputs / p.groups, width) * pixels > kMostLists) return false;
  return p.path == kNMEvent && (w.kernel_h > 1 || w.kernel_w > 1) && (w.kernel_w == 1 || w.dilation_w == 1) &&
         w.kernel_h <= kNMWindowLines && p.weight.segment % 8 == 0 && p.weight.segment > 0 &&
         p.weight.k() < kPanelBytes / (width * element) && RowLists::bytes(w, p.steps) <= kListBytes;
}

void nm_run_windows(const NMProblem& p, const NMSink& sink) {
  const int64_t element = nm_wide_panel(p.weight.type) ? 4 : 2;
  const int64_t width = 2 * nm_panel().lanes * nm_panel().pairs[element == 4];
  const int64_t outputs = p.weight.outputs / p.groups, ranges = divide_up(outputs, width);
  const int64_t rows = p.windows.batch / p.steps * p.windows.out_h;  // of outputs
  const int64_t row_bytes = p.windows.out_w * p.steps * p.weight.k() / 8;
  for (int64_t group = 0; group < p.groups; ++group) {
    SpikeWindows w = p.windows;
    w.take(group * p.weight.segment, p.weight.segment);
    const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, row_bytes));
    torch::stable::parallel_for(0, ranges * rows, grain, [&](int64_t b, int64_t e) {
      for (int64_t range = b / rows; range * rows < e; ++range) {
        const int64_t first = range * width, last = std::min(first + width, outputs);
        run_task(p, w, sink, group * outputs + first, group * outputs + last, std::max<int64_t>(b - range * rows, 0),
                 std::min(e - range * rows, rows));
      }
    });
  }
}

}  // namespace snn_core
