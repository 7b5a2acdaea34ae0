#include "nm_matmul/nm_engine.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "native/cpu_features.h"
#include "native/row_view.h"
#include "nm_matmul/nm_windows.h"

namespace snn_core {

const NMPanelKernel& nm_panel() { SNN_PICK_VBMI(nm_panel) }
const NMEventKernel& nm_event() { SNN_PICK_VBMI(nm_event) }

const NMKernel* nm_kernel(int path, const NMWeight& w) {
  const auto lookup = []() -> const NMKernel& { SNN_PICK_VBMI(nm_lookup) };
  const auto few_rows = []() -> const NMKernel& { SNN_PICK_VBMI(nm_few_rows) };
  const auto kept = []() -> const NMKernel& { SNN_PICK_VBMI(nm_kept) };
  const NMKernel& kernel = path == kNMLookup ? lookup() : path == kNMFewRows ? few_rows() : kept();
  return kernel.run != nullptr && kernel.takes(w) ? &kernel : nullptr;
}

namespace {

constexpr int64_t kWaveBytes = 32 << 20;    // of prepared spikes, at most (but one block at least)
// Of a decoded chunk, beside the sums in the L2 cache. Few spikes: what a row costs by itself counts, so chunks are long.
constexpr int64_t kPanelBytes = 128 << 10, kLongPanelBytes = 256 << 10;
constexpr double kLongPanelRate = 0.15;
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kGroupRows = 512;         // rows for which decoding a panel pays
constexpr int64_t kMostRows = 2048;         // of a task, whose sums are kept between chunks of inputs
constexpr int64_t kRangeOutputs = 64;       // of a task of the other paths
constexpr int64_t kWideRows = 48;           // of a block, above which its vectors are full enough to go with others
constexpr int64_t kGrainWork = 1 << 20;     // weights touched below which a thread is not worth waking
constexpr int64_t kGrainBytes = 1 << 15;    // bytes of spikes prepared, likewise

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

struct Buffer {
  std::unique_ptr<void, FreeDeleter> data;
  int64_t bytes = 0;

  void* reserve(int64_t wanted) {
    if (wanted > bytes) {
      data.reset();
      bytes = 0;
      data.reset(std::aligned_alloc(64, (wanted + 63) / 64 * 64));
      if (!data) throw std::bad_alloc();
      bytes = wanted;
    }
    return data.get();
  }
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The spikes of a block in the form of a path.
struct Prepared {
  std::unique_ptr<uint16_t[]> spikes;  // event: inputs within their chunk
  std::vector<uint32_t> offset;        // [chunks * rows + 1]: a chunk is one run of memory
  uint8_t* bytes = nullptr;            // others: of each 64 rows
};

// Chunks of inputs whose panel fits the L2 cache, as runs of bytes of a row.
struct Chunks {
  std::vector<NMPiece> pieces;
  std::vector<int64_t> first_piece, first_k;  // of each chunk, and the ends

  Chunks(const NMWeight& w, int64_t longest) {
    // Where segments fill whole bytes a row of bits is one run.
    const bool whole = w.segment % 8 == 0;
    const int64_t segment = whole ? w.k() : w.segment, segments = whole ? 1 : w.segments;
    const int64_t bytes = (segment + 7) / 8, most = std::max<int64_t>(8, longest / 64 * 8);  // bytes of a piece
    int64_t start = 0;
    first_piece.push_back(0), first_k.push_back(0);
    for (int64_t s = 0; s < segments; ++s) {
      for (int64_t byte = 0; byte < bytes; byte += most) {
        const int64_t k = s * segment + 8 * byte, end = std::min(segment, 8 * (byte + most)) + s * segment;
        if (end - start > longest && k > start) {
          start = k;
          first_piece.push_back(static_cast<int64_t>(pieces.size())), first_k.push_back(k);
        }
        pieces.push_back({s * bytes + byte, std::min(most, bytes - byte), k - start});
      }
    }
    first_piece.push_back(static_cast<int64_t>(pieces.size())), first_k.push_back(w.k());
  }

  int64_t count() const { return static_cast<int64_t>(first_piece.size()) - 1; }
  int64_t width(int64_t c) const { return first_k[c + 1] - first_k[c]; }
};

class Engine {
 public:
  Engine(const NMProblem& problem, const NMSink& sink)
      : p_(problem), w_(problem.weight), sink_(sink), kernel_(kernel_of(problem)),
        positions_(problem.windows.rows() / problem.steps),
        block_positions_(std::max<int64_t>(1, kNMBlockRows / problem.steps)),
        lanes_(nm_panel().lanes),
        element_(nm_wide_panel(w_.type) ? 4 : 2),
        panel_width_(2 * lanes_ * nm_panel().pairs[element_ == 4]),
        chunks_(w_, std::min<int64_t>(panel_bytes() / (panel_width_ * element_), 65536)) {}

  void run() {
    const int64_t blocks = divide_up(positions_, block_positions_);
    const int64_t rows = block_positions_ * p_.steps;
    const int64_t bytes = kernel_ == nullptr ? rows * w_.k() * 2 : divide_up(rows, kNMBlockRows) * nm_block_bytes(w_);
    const int64_t wave = std::clamp<int64_t>(kWaveBytes / std::max<int64_t>(1, bytes), 1, blocks);
    prepared_.resize(wave);
    if (kernel_ != nullptr) {
      const int64_t each = divide_up(rows, kNMBlockRows) * nm_block_bytes(w_);
      storage_.reserve(wave * each);
      for (int64_t i = 0; i < wave; ++i) prepared_[i].bytes = static_cast<uint8_t*>(storage_.data.get()) + i * each;
    }
    for (int64_t group = 0; group < p_.groups; ++group) {
      SpikeWindows windows = p_.windows;
      windows.take(group * w_.segment, w_.segment);
      for (int64_t first = 0; first < blocks; first += wave) {
        run_wave(windows, group, first, std::min(wave, blocks - first));
      }
    }
  }

 private:
  static const NMKernel* kernel_of(const NMProblem& problem) {
    if (problem.path == kNMEvent) return nullptr;
    const NMKernel* const kernel = nm_kernel(problem.path, problem.weight);
    if (kernel == nullptr) {
      throw std::runtime_error("nm_matmul: path " + std::to_string(problem.path) +
                               " does not take this weight on this machine");
    }
    return kernel;
  }

  int64_t panel_bytes() const {
    const bool one = w_.k() * panel_width_ * element_ <= kPanelBytes;
    const bool few = element_ == 4 || one || kernel_ != nullptr || nm_firing_rate(p_.windows) < kLongPanelRate;
    return few ? kLongPanelBytes : kPanelBytes;
  }

  NMBlock block(int64_t index) const {
    const int64_t first = index * block_positions_;
    return {first, std::min(block_positions_, positions_ - first), p_.steps, positions_};
  }

  void run_wave(const SpikeWindows& windows, int64_t group, int64_t first_block, int64_t blocks) {
    const int64_t rows = blocks * block_positions_ * p_.steps;
    const int64_t k = std::max<int64_t>(1, w_.k());
    const int64_t outputs = w_.outputs / p_.groups, first_output = group * outputs;
    const int64_t width = kernel_ == nullptr ? panel_width_ : kRangeOutputs;
    const int64_t ranges = divide_up(outputs, width);
    if (ranges > 1) prepare_all(windows, first_block, blocks, rows * k / 8);
    // Rows are shared out only where outputs alone do not occupy the threads: each share decodes its panel again.
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t wanted = threads == 1 ? 1 : divide_up(kTasksPerThread * threads, ranges);
    const int64_t paying = divide_up(rows, kernel_ == nullptr ? kGroupRows : kNMBlockRows);
    const int64_t shares =
        std::clamp<int64_t>(std::max(std::min(wanted, paying), divide_up(rows, kMostRows)), 1, blocks);
    const int64_t share = divide_up(blocks, shares);
    const int64_t work = std::max<int64_t>(1, share * (rows / blocks) * k * std::min(outputs, width) / 16);
    torch::stable::parallel_for(0, ranges * shares, std::max<int64_t>(1, kGrainWork / work), [&](int64_t b, int64_t e) {
      for (int64_t task = b, next = b; task < e; task = next) {
        const int64_t first = task / shares * width, last = std::min(first + width, outputs);
        // Without a panel, what a thread has of a range is one task: more blocks that can go together.
        next = kernel_ == nullptr ? task + 1 : std::min(e, (task / shares + 1) * shares);
        const int64_t begin = task % shares * share, end = std::min(begin + (next - task) * share, blocks);
        if (begin >= blocks) continue;
        if (ranges == 1) {  // nobody else reads these blocks
          for (int64_t i = begin; i < end; ++i) prepare(windows, block(first_block + i), prepared_[i]);
        }
        if (kernel_ == nullptr) {
          run_events(first_output + first, first_output + last, first_block, begin, end);
        } else {
          run_path(first_output + first, first_output + last, first_block, begin, end);
        }
      }
    });
  }

  // `bytes` of spikes in all.
  void prepare_all(const SpikeWindows& windows, int64_t first_block, int64_t blocks, int64_t bytes) {
    const int64_t each = std::max<int64_t>(1, bytes / blocks);
    torch::stable::parallel_for(0, blocks, std::max<int64_t>(1, kGrainBytes / each), [&](int64_t b, int64_t e) {
      for (int64_t i = b; i < e; ++i) prepare(windows, block(first_block + i), prepared_[i]);
    });
  }

  void prepare(const SpikeWindows& windows, const NMBlock& block, Prepared& out) const {
    kernel_ == nullptr ? prepare_lists(windows, block, out) : prepare_bytes(windows, block, out);
  }

  void prepare_lists(const SpikeWindows& windows, const NMBlock& block, Prepared& out) const {
    const int64_t rows = block.rows(), count = chunks_.count();
    const int64_t bytes = windows.row_bytes();
    auto* const buffer = static_cast<uint8_t*>(nm_scratch(kPanelScratch, (count > 1 ? rows : 1) * bytes));
    auto* const list = static_cast<uint16_t*>(nm_scratch(kSumScratch, 2 * (rows * (w_.k() + 8) + kSpikeSlack)));
    if (rows * w_.k() >= int64_t{1} << 32) {  // offsets are 32 bits
      throw std::runtime_error("nm_matmul: steps times the inputs of an output must stay below 2^32");
    }
    out.offset.resize(rows * count + 1);
    int64_t size = 0;
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t i = 0; i < rows; ++i) {
        uint8_t* const gathered = buffer + (count > 1 ? i * bytes : 0);
        const uint8_t* const row = c == 0 || windows.direct() ? windows.row(block.row(i), gathered) : gathered;
        out.offset[c * rows + i] = static_cast<uint32_t>(size);
        size += nm_event().list(row, chunks_.pieces.data() + chunks_.first_piece[c],
                                chunks_.first_piece[c + 1] - chunks_.first_piece[c], list + size);
      }
    }
    out.offset[rows * count] = static_cast<uint32_t>(size);
    out.spikes.reset(new uint16_t[size + 1]);
    std::copy_n(list, size, out.spikes.get());
  }

  void prepare_bytes(const SpikeWindows& windows, const NMBlock& block, Prepared& out) const {
    const int64_t stride = divide_up(windows.row_bytes() + SpikeWindows::kRunSlack, 64) * 64;
    constexpr int64_t line_bytes = SpikeWindows::kLineBytes;
    auto* const line = static_cast<uint8_t*>(nm_scratch(kPanelScratch, line_bytes + kNMBlockRows * stride));
    uint8_t* const buffer = line + line_bytes;
    for (int64_t first = 0; first < block.rows(); first += kNMBlockRows) {
      const int rows = static_cast<int>(std::min<int64_t>(kNMBlockRows, block.rows() - first));
      for (int64_t i = 0, count = 0; i < rows; i += count) {
        const int64_t row = block.row(first + i), together = block.count - (first + i) % block.count;
        count = std::min({rows - i, together, windows.out_w - row % windows.out_w});
        windows.gather_run(row, count, buffer + i * stride, stride, line);
      }
      kernel_->prepare(w_, buffer, stride, rows, out.bytes + first / kNMBlockRows * nm_block_bytes(w_));
    }
  }

  void run_path(int64_t first, int64_t last, int64_t first_block, int64_t begin, int64_t end) const {
    NMWeight weight = w_;
    weight.finite = end - begin > 1 && kernel_->finite != nullptr && kernel_->finite(w_, first, last);
    const int64_t width = divide_up(last - first, kNMOutputStep) * kNMOutputStep;
    const bool wide = kernel_->run_wide != nullptr && kernel_->takes_wide(weight);
    for (int64_t i = begin, together = 1; i < end; i += together) {
      const int64_t rows = rows_of(first_block + i);
      const bool four = wide && i + kNMWideBlocks <= end && rows > kWideRows && rows <= kNMBlockRows &&
                        rows_of(first_block + i + kNMWideBlocks - 1) == rows;
      together = four ? kNMWideBlocks : 1;
      run_blocks(weight, first, last, first_block, i, together, width);
    }
  }

  int64_t rows_of(int64_t index) const { return block(index).rows(); }

  // `together` blocks from the wave's i-th on: one, or as many as the path takes at once.
  void run_blocks(const NMWeight& weight, int64_t first, int64_t last, int64_t first_block, int64_t i,
                  int64_t together, int64_t width) const {
    float* const place = sink_.place(block(first_block + i), first, last);
    const int64_t ld = place != nullptr ? w_.outputs : width, most = rows_of(first_block + i);
    float* const scratch =
        place != nullptr ? nullptr : static_cast<float*>(nm_scratch(kSumScratch, together * most * width * 4));
    float *target[kNMWideBlocks], *sums[kNMWideBlocks];
    const uint8_t* spikes[kNMWideBlocks];
    for (int64_t b = 0; b < together; ++b) {
      target[b] = place != nullptr ? sink_.place(block(first_block + i + b), first, last) : scratch + b * most * width;
      sums[b] = target[b] - first;
      spikes[b] = prepared_[i + b].bytes;
    }
    if (together > 1) {
      kernel_->run_wide(weight, spikes, static_cast<int>(most), first, last, sums, ld);
    } else {
      for (int64_t row = 0; row < most; row += kNMBlockRows) {
        const int rows = static_cast<int>(std::min<int64_t>(kNMBlockRows, most - row));
        kernel_->run(weight, spikes[0] + row / kNMBlockRows * nm_block_bytes(w_), rows, first, last,
                     sums[0] + row * ld, ld);
      }
    }
    for (int64_t b = 0; b < together; ++b) {
      const NMBlock here = block(first_block + i + b);
      if (place == nullptr && last - first < width) {  // the sink may read whole vectors
        for (int64_t row = 0; row < here.rows(); ++row) {
          std::fill(target[b] + row * ld + (last - first), target[b] + (row + 1) * ld, 0.0f);
        }
      }
      nm_finish(p_, sink_, here, first, last, target[b], ld);
    }
  }

  // Outputs first <= o < last of blocks begin <= b < end of the wave.
  void run_events(int64_t first, int64_t last, int64_t first_block, int64_t begin, int64_t end) const {
    const int pairs = static_cast<int>(divide_up(last - first, 2 * lanes_));
    const int64_t width = 2 * lanes_ * pairs, count = chunks_.count();
    int64_t longest = 0, kept = 0, largest = 0;  // inputs of a chunk; rows whose sums are kept between chunks
    for (int64_t c = 0; c < count; ++c) longest = std::max(longest, chunks_.width(c));
    for (int64_t i = begin; i < end; ++i) {
      kept += block(first_block + i).rows();
      largest = std::max(largest, block(first_block + i).rows());
    }
    void* const panel = nm_scratch(kPanelScratch, longest * width * element_);
    auto* const sums = static_cast<float*>(nm_scratch(kSumScratch, (count > 1 ? kept : largest) * width * 4));
    for (int64_t c = 0; c < count; ++c) {
      // Outputs of the next group that the last vector covers are computed and dropped.
      nm_panel().decode(w_, first, pairs, chunks_.first_k[c], chunks_.first_k[c + 1], panel);
      float* y = sums;
      for (int64_t i = begin; i < end; ++i) {
        const NMBlock here = block(first_block + i);
        const Prepared& spikes = prepared_[i];
        float* const place = count == 1 && last - first == width ? sink_.place(here, first, last) : nullptr;
        float* const target = place != nullptr ? place : y;
        const int64_t ld = place != nullptr ? w_.outputs : width;
        const NMEventRows rows{panel, pairs, spikes.spikes.get(), spikes.offset.data() + c * here.rows(), here.rows(),
                               target, ld, c > 0};
        nm_event().run[element_ == 4](rows);
        if (c + 1 == count) nm_finish(p_, sink_, here, first, last, target, ld);
        if (count > 1) y += here.rows() * width;
      }
    }
  }

  const NMProblem& p_;
  const NMWeight& w_;
  const NMSink& sink_;
  const NMKernel* kernel_;  // null: the event path
  int64_t positions_, block_positions_;
  int64_t lanes_, element_, panel_width_;
  Chunks chunks_;
  Buffer storage_;
  std::vector<Prepared> prepared_;
};

}  // namespace

void* nm_scratch(NMScratch slot, int64_t bytes) {
  thread_local std::array<Buffer, kScratchCount> buffers;
  return buffers[slot].reserve(std::max<int64_t>(bytes, 64));
}

double nm_firing_rate(const SpikeWindows& windows) {
  const int64_t row = windows.width * windows.bytes, image = windows.height * row, bytes = windows.batch * image;
  const bool rows = windows.stride_w == windows.bytes || windows.width == 1;
  const bool images = rows && (windows.stride_h == row || windows.height == 1);
  const auto count = row_tools().count;
  int64_t spikes = 0;
  if (images && (windows.stride_b == image || windows.batch == 1)) {
    spikes = count(windows.bits, bytes);
  } else {
    for (int64_t b = 0; b < windows.batch; ++b) {
      for (int64_t h = 0; h < windows.height; ++h) {
        const uint8_t* const start = windows.bits + b * windows.stride_b + h * windows.stride_h;
        if (rows) spikes += count(start, row);
        for (int64_t w = 0; !rows && w < windows.width; ++w) spikes += count(start + w * windows.stride_w, windows.bytes);
      }
    }
  }
  return bytes > 0 ? spikes / (8.0 * bytes) : 0.0;
}

void nm_finish(const NMProblem& p, const NMSink& sink, const NMBlock& block, int64_t first, int64_t last, float* sums,
               int64_t ld) {
  if (p.scale != nullptr || p.bias != nullptr) {
    nm_event().finish(sums, ld, block.rows(), last - first, p.scale != nullptr ? p.scale + first : nullptr,
                      p.bias != nullptr ? p.bias + first : nullptr);
  }
  sink.take(block, first, last, sums, ld);
}

void nm_run(const NMProblem& problem, const NMSink& sink) {
  if (problem.windows.rows() == 0 || problem.weight.outputs == 0) return;
  if (nm_takes_windows(problem)) return nm_run_windows(problem, sink);
  Engine(problem, sink).run();
}

}  // namespace snn_core
