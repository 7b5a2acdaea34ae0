// Convolution of frames that are mostly zero, and LIF behind it, on the CPU.
//
// A task is a band of output rows of one sample through all time steps, a few steps at a time. The inputs that are not
// zero are listed once a step; for each output row the rows of the weight that they meet are added up in a buffer that
// stays in the caches, and the LIF row kernels turn it into bits.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "frame_conv/frame_rows.h"
#include "lif/blocks.h"
#include "lif/options.h"
#include "native/cpu_features.h"
#include "native/tensors.h"

namespace snn_core {
namespace {

constexpr int64_t kChunkFloats = 4096;  // of currents: half an L1 cache
constexpr int64_t kTileSteps = 4;       // the LIF row kernels take so many steps at once
constexpr int64_t kFewestTasks = 16;    // that threads share

FrameKernel frame_rows() { SNN_PICK(frame_rows) }

struct Window {
  int64_t kernel, stride, padding, dilation, in, out;

  Window(int64_t kernel_size, const std::vector<int64_t>& stride_, const std::vector<int64_t>& padding_,
         const std::vector<int64_t>& dilation_, int axis, int64_t size)
      : kernel(kernel_size), stride(stride_[axis]), padding(padding_[axis]), dilation(dilation_[axis]), in(size),
        out((size + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1) {}
};

struct Frames {
  const char* data;
  const float* table;  // null: the value itself
  int64_t t_stride, s_stride, c_stride, y_stride, x_stride;
  bool counts;  // uint8, else float32
};

struct Problem {
  Frames x;
  Window rows, columns;
  const float* weight;  // [kh, kw, C, O]
  int64_t channels, outputs, steps, samples;
  std::vector<int64_t> first_tap;  // of every input column
  std::vector<FrameTap> taps;

  // An input meets the output columns whose window it is in.
  void list_taps() {
    first_tap.push_back(0);
    for (int64_t ix = 0; ix < columns.in; ++ix) {
      for (int64_t kx = 0; kx < columns.kernel; ++kx) {
        const int64_t place = ix + columns.padding - kx * columns.dilation;
        if (place < 0 || place % columns.stride != 0 || place / columns.stride >= columns.out) continue;
        taps.push_back({kx * channels * outputs, place / columns.stride * outputs});
      }
      first_tap.push_back(static_cast<int64_t>(taps.size()));
    }
  }
};

// The inputs of some rows of a frame that are not zero (NaN is not), row by row.
struct InputList {
  std::vector<FrameInput> inputs;
  std::vector<int64_t> first;  // of every row, and the end
  int64_t first_row = 0;

  void fill(const Problem& p, int64_t t, int64_t s, int64_t begin, int64_t end) {
    first_row = begin;
    first.assign(1, 0);
    inputs.resize((end - begin) * p.channels * p.columns.in + 1);
    FrameInput* next = inputs.data();
    for (int64_t iy = begin; iy < end; ++iy) {
      for (int64_t c = 0; c < p.channels; ++c) {
        const int64_t offset = t * p.x.t_stride + s * p.x.s_stride + c * p.x.c_stride + iy * p.x.y_stride;
        const int64_t weight = c * p.outputs;
        next = p.x.counts ? list(p, reinterpret_cast<const uint8_t*>(p.x.data) + offset, weight, next)
                          : list(p, reinterpret_cast<const float*>(p.x.data) + offset, weight, next, 0, p.columns.in);
      }
      first.push_back(next - inputs.data());
    }
  }

  // Without branches: which inputs are zero cannot be predicted.
  template <class T>
  static FrameInput* list(const Problem& p, const T* row, int64_t weight, FrameInput* next, int64_t ix, int64_t until) {
    for (; ix < until; ++ix) {
      const T count = row[ix * p.x.x_stride];
      float value = static_cast<float>(count);
      if constexpr (sizeof(T) == 1) value = p.x.table != nullptr ? p.x.table[count] : value;
      *next = {value, static_cast<int32_t>(ix), weight};
      next += value != 0.0f;
    }
    return next;
  }

  static FrameInput* list(const Problem& p, const uint8_t* row, int64_t weight, FrameInput* next) {
    const bool zeros_stay = p.x.table == nullptr || p.x.table[0] == 0.0f;
    int64_t ix = 0;
    for (; ix + 8 <= p.columns.in; ix += 8) {
      uint64_t eight = 1;
      if (p.x.x_stride == 1 && zeros_stay) std::memcpy(&eight, row + ix, 8);
      if (eight != 0) next = list(p, row, weight, next, ix, ix + 8);
    }
    return list(p, row, weight, next, ix, p.columns.in);
  }
};

struct Scratch {
  std::vector<float> currents;
  std::vector<InputList> lists;
};

// A band of output rows of a sample through all time steps.
struct Bands {
  const Problem& problem;
  const Options& o;
  ForwardKernel lif;
  const std::vector<float>& bias_row;  // [OW, O]
  uint8_t* bits;                       // [T, S, OH, OW, OB]
  float* v;                            // [S, OH, OW, O]: before the first step, then after the last
  int64_t count, chunk;

  Scratch scratch() const {
    return {std::vector<float>(std::min(chunk, problem.steps) * bias_row.size()),
            std::vector<InputList>(std::min(chunk, problem.steps))};
  }

  void run(int64_t s, int64_t band, Scratch& scratch) const {
    const Window& rows = problem.rows;
    const int64_t height = (rows.out + count - 1) / count;
    const int64_t first = band * height, last = std::min(first + height, rows.out);
    if (first >= last) return;
    const int64_t from = std::max<int64_t>(0, first * rows.stride - rows.padding);
    const int64_t reach = (last - 1) * rows.stride - rows.padding + (rows.kernel - 1) * rows.dilation + 1;
    const int64_t until = std::max(from, std::min(rows.in, reach));
    for (int64_t t = 0; t < problem.steps; t += chunk) {
      const int64_t steps = std::min(chunk, problem.steps - t);
      for (int64_t k = 0; k < steps; ++k) scratch.lists[k].fill(problem, t + k, s, from, until);
      for (int64_t oy = first; oy < last; ++oy) row(s, t, steps, oy, scratch);
    }
  }

  void row(int64_t s, int64_t t, int64_t steps, int64_t oy, Scratch& scratch) const {
    const int64_t n = static_cast<int64_t>(bias_row.size());
    for (int64_t k = 0; k < steps; ++k) {
      float* const currents = scratch.currents.data() + k * n;
      std::memcpy(currents, bias_row.data(), n * sizeof(float));
      sum(scratch.lists[k], oy, currents);
    }
    const int64_t bytes = problem.columns.out * ((problem.outputs + 7) / 8);
    const int64_t time_stride = problem.samples * problem.rows.out * bytes, place = s * problem.rows.out + oy;
    fire(scratch.currents.data(), n, bits + t * time_stride + place * bytes, time_stride, v + place * n, steps);
  }

  void sum(const InputList& list, int64_t oy, float* currents) const {
    for (int64_t ky = 0; ky < problem.rows.kernel; ++ky) {
      const int64_t iy = oy * problem.rows.stride - problem.rows.padding + ky * problem.rows.dilation;
      if (iy < 0 || iy >= problem.rows.in) continue;
      const int64_t begin = list.first[iy - list.first_row], end = list.first[iy - list.first_row + 1];
      const float* const weight = problem.weight + ky * problem.columns.kernel * problem.channels * problem.outputs;
      frame_rows()({list.inputs.data() + begin, end - begin, problem.first_tap.data(), problem.taps.data(), weight,
                    currents, problem.outputs});
    }
  }

  void fire(const float* currents, int64_t n, uint8_t* out, int64_t time_stride, float* state, int64_t steps) const {
    const int64_t outputs = problem.outputs;
    const int64_t run = outputs % 8 == 0 ? n : outputs;  // the bits of a run begin with a byte
    for (int64_t i = 0, byte = 0; i < n; i += run, byte += (outputs + 7) / 8) {
      lif({currents + i, n, out + byte, time_stride, state + i, run, steps, false}, o.p);
    }
  }
};

void require_frames(bool fits, const char* message) {
  if (!fits) throw std::runtime_error(std::string("frame_conv_lif: ") + message);
}

void check(const Tensor& x, const OptionalTensor& table, const Tensor& weight, const OptionalTensor& bias) {
  const bool counts = x.scalar_type() == ScalarType::Byte;
  require_frames(x.dim() == 5 && (counts || x.scalar_type() == ScalarType::Float),
                 "x_seq must be float32 or uint8 [T, S, C, H, W]");
  require_frames(x.size(0) > 0, "x_seq has no time step");
  require_frames(weight.dim() == 4 && weight.scalar_type() == ScalarType::Float && weight.is_contiguous() &&
                     weight.size(2) == x.size(2) && weight.size(0) > 0 && weight.size(1) > 0,
                 "weight must be float32 [kh, kw, C, O], contiguous, with the channels of x_seq");
  if (bias.has_value()) {
    require_frames(bias->dim() == 1 && bias->size(0) == weight.size(3) && bias->is_contiguous() &&
                       bias->scalar_type() == ScalarType::Float,
                   "bias must be float32 [O], contiguous");
  }
  if (table.has_value()) {
    require_frames(counts && table->dim() == 1 && table->size(0) == 256 && table->is_contiguous() &&
                       table->scalar_type() == ScalarType::Float,
                   "table must be float32 [256], contiguous, and x_seq uint8");
  }
}

Problem make_problem(const Tensor& x, const OptionalTensor& table, const Tensor& weight,
                     const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                     const std::vector<int64_t>& dilation) {
  for (const auto* pair : {&stride, &padding, &dilation}) {
    require_frames(pair->size() == 2, "stride, padding and dilation must be pairs");
    require_frames(std::min((*pair)[0], (*pair)[1]) >= (pair == &padding ? 0 : 1), "stride, padding or dilation");
  }
  const Frames frames{static_cast<const char*>(x.data_ptr()),
                      table.has_value() ? static_cast<const float*>(table->data_ptr()) : nullptr,
                      x.stride(0), x.stride(1), x.stride(2), x.stride(3), x.stride(4),
                      x.scalar_type() == ScalarType::Byte};
  Problem problem{frames, Window(weight.size(0), stride, padding, dilation, 0, x.size(3)),
                  Window(weight.size(1), stride, padding, dilation, 1, x.size(4)),
                  static_cast<const float*>(weight.data_ptr()), x.size(2), weight.size(3), x.size(0), x.size(1), {}, {}};
  for (const Window* window : {&problem.rows, &problem.columns}) {
    require_frames(window->in + 2 * window->padding >= window->dilation * (window->kernel - 1) + 1,
                   "the frames of x_seq are smaller than the window");
  }
  problem.list_taps();
  return problem;
}

std::tuple<Tensor, Tensor> frame_conv_lif(Tensor x, OptionalTensor table, Tensor weight, OptionalTensor bias,
                                          std::vector<int64_t> stride, std::vector<int64_t> padding,
                                          std::vector<int64_t> dilation, OptionalTensor v0, double tau,
                                          double v_threshold, std::optional<double> v_reset, bool decay_input) {
  check(x, table, weight, bias);
  const Problem problem = make_problem(x, table, weight, stride, padding, dilation);
  const Options o = make_options(weight, std::nullopt, tau, v_threshold, v_reset, decay_input, false, 0, 2.0);
  const int64_t rows = problem.rows.out, columns = problem.columns.out, outputs = problem.outputs;
  const int64_t bytes = (outputs + 7) / 8, frames = problem.steps * problem.samples, n = columns * outputs;
  Tensor bits = empty_strided(x, {frames, rows, columns, bytes},
                              {rows * columns * bytes, columns * bytes, bytes, 1}, ScalarType::Byte);
  Tensor v_last = empty_strided(x, {problem.samples, rows, columns, outputs}, {rows * n, n, outputs, 1},
                                ScalarType::Float);
  const int64_t states = problem.samples * rows * n;
  if (states == 0) return {bits, v_last};
  auto* const v = static_cast<float*>(v_last.data_ptr());
  if (v0.has_value()) {
    require_frames(v0->scalar_type() == ScalarType::Float && v0->is_contiguous() && v0->numel() == states,
                   "v0 must be float32 [S, OH, OW, O], contiguous");
    std::memcpy(v, v0->data_ptr(), states * sizeof(float));
  } else {
    std::fill_n(v, states, o.p.v_reset);
  }
  std::vector<float> bias_row(n, 0.0f);
  if (bias.has_value()) {
    const auto* values = static_cast<const float*>(bias->data_ptr());
    for (int64_t column = 0; column < columns; ++column) std::copy_n(values, outputs, &bias_row[column * outputs]);
  }
  const auto& variants = forward_table().bits[kFloat32];
  const int64_t bands = std::clamp<int64_t>(kFewestTasks / problem.samples, 1, rows);
  const Bands work{problem, o, variants[o.variant.decay_input][o.variant.divide][o.variant.soft_reset], bias_row,
                   static_cast<uint8_t*>(bits.data_ptr()), v, bands,
                   std::max(kTileSteps, kChunkFloats / n / kTileSteps * kTileSteps)};
  const int64_t grain = std::max<int64_t>(1, kParallelGrain / (n * rows / bands * problem.steps + 1));
  torch::stable::parallel_for(0, problem.samples * bands, grain, [&](int64_t begin, int64_t end) {
    Scratch scratch = work.scratch();
    for (int64_t index = begin; index < end; ++index) work.run(index / bands, index % bands, scratch);
  });
  return {bits, v_last};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) { m.impl("frame_conv_lif", TORCH_BOX(&frame_conv_lif)); }

}  // namespace snn_core
