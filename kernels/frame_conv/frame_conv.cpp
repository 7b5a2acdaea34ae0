// Convolution of frames that are mostly zero, and LIF behind it, on the CPU.
//
// A task is a band of output rows of one sample through all time steps, a few steps at a time. The inputs that are not
// zero are listed; the rows of the weight that they meet are added up in a buffer that stays in the caches, input by
// input, so that what is added to one output soon again is in flight no longer; the LIF row kernels turn it into bits.

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
#include "frame_conv/nonzero.h"
#include "frame_conv/window_rows.h"
#include "lif/blocks.h"
#include "lif/options.h"
#include "native/cpu_features.h"
#include "native/tensors.h"

namespace snn_core {
namespace {

constexpr int64_t kBandFloats = 16384;  // of currents of one step: a few steps of them fit an L2 cache
constexpr int64_t kTileSteps = 4;       // the LIF row kernels take so many steps at once
constexpr int64_t kFewestTasks = 16;    // that threads share

constexpr int64_t kWindowSteps = 16;        // of a band of windows at once
constexpr int64_t kWindowBytes = 64 << 10;  // of its bits: they fit an L1 and L2 cache

FrameKernel frame_rows() { SNN_PICK(frame_rows) }
WindowKernel window_rows() { SNN_PICK(window_rows) }

struct Window {
  int64_t kernel, stride, padding, dilation, in, out;

  Window(int64_t kernel_size, const std::vector<int64_t>& stride_, const std::vector<int64_t>& padding_,
         const std::vector<int64_t>& dilation_, int axis, int64_t size)
      : kernel(kernel_size), stride(stride_[axis]), padding(padding_[axis]), dilation(dilation_[axis]), in(size),
        out((size + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1) {}
};

struct Frames {
  const char* data;
  const float* table;  // what a count stands for
  int64_t t_stride, s_stride, c_stride, y_stride, x_stride;
  bool counts;  // uint8, else float32
};

// Taps along one axis, of the inputs `begin .. end` onto the outputs `first .. last`.
struct Taps {
  std::vector<FrameTap> taps;
  std::vector<int64_t> first{0};  // of every input, and the end

  Taps(const Window& window, int64_t begin, int64_t end, int64_t first_output, int64_t last_output, int64_t w_step,
       int64_t y_step) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t k = 0; k < window.kernel; ++k) {
        const int64_t place = i + window.padding - k * window.dilation, output = place / window.stride;
        if (place < 0 || place % window.stride != 0 || output < first_output || output >= last_output) continue;
        taps.push_back({k * w_step, (output - first_output) * y_step});
      }
      first.push_back(static_cast<int64_t>(taps.size()));
    }
  }
};

struct Problem {
  Frames x;
  Window rows, columns;
  const float* weight;  // [kh, kw, C, O]
  int64_t channels, outputs, steps, samples;

  int64_t row_floats() const { return columns.out * outputs; }
};

// The inputs of some rows of a frame that are not zero (NaN is not), row by row.
struct InputList {
  std::vector<FrameInput> inputs;
  std::vector<int64_t> first;  // of every row, and the end

  void fill(const Problem& p, int64_t t, int64_t s, int64_t begin, int64_t end) {
    inputs.resize((end - begin) * p.channels * p.columns.in);
    first.assign(1, 0);
    FrameInput* next = inputs.data();
    for (int64_t iy = begin; iy < end; ++iy) {
      for (int64_t c = 0; c < p.channels; ++c) {
        const int64_t offset = t * p.x.t_stride + s * p.x.s_stride + c * p.x.c_stride + iy * p.x.y_stride;
        next = p.x.counts ? list(p, reinterpret_cast<const uint8_t*>(p.x.data) + offset, c * p.outputs, next)
                          : list(p, reinterpret_cast<const float*>(p.x.data) + offset, c * p.outputs, next);
      }
      first.push_back(next - inputs.data());
    }
  }

  template <class T>
  static FrameInput* list(const Problem& p, const T* row, int64_t weight, FrameInput* next) {
    for (int64_t start = 0; start < p.columns.in; start += 64) {
      const int64_t count = std::min<int64_t>(64, p.columns.in - start);
      // Bits first: which inputs are zero cannot be predicted, how many are not nearly can.
      for (uint64_t mask = nonzero(p, row + start * p.x.x_stride, count); mask != 0; mask &= mask - 1) {
        const int64_t ix = start + __builtin_ctzll(mask);
        const T input = row[ix * p.x.x_stride];
        float value = static_cast<float>(input);
        if constexpr (sizeof(T) == 1) value = p.x.table[input];
        *next++ = {value, static_cast<int32_t>(ix), weight};
      }
    }
    return next;
  }

  template <class T>
  static uint64_t nonzero(const Problem& p, const T* row, int64_t count) {
    const bool all = p.x.counts && p.x.table[0] != 0.0f;
    return all ? ~uint64_t{0} >> (64 - count) : nonzero_inputs(row, p.x.x_stride, count);
  }
};

// Bands of output rows, each of one sample through all time steps.
struct Bands {
  const Problem& problem;
  const Options& o;
  ForwardKernel lif;
  const Taps& columns;
  const std::vector<float>& bias_row;  // [OW, O]
  uint8_t* bits;                       // [T, S, OH, OW, OB]
  float* v;                            // [S, OH, OW, O]: before the first step, then after the last
  int64_t height;                      // of a band

  struct Scratch {
    std::vector<float> currents;  // [steps, rows of the band, OW, O]
    InputList list;
  };

  Scratch scratch() const {
    return {std::vector<float>(std::min(kTileSteps, problem.steps) * height * problem.row_floats()), {}};
  }

  void run(int64_t s, int64_t band, Scratch& scratch) const {
    const Window& rows = problem.rows;
    const int64_t first = band * height, last = std::min(first + height, rows.out);
    const int64_t reach = (last - 1) * rows.stride - rows.padding + (rows.kernel - 1) * rows.dilation + 1;
    const int64_t from = std::clamp<int64_t>(first * rows.stride - rows.padding, 0, rows.in);
    const int64_t until = std::clamp(reach, from, rows.in);
    const int64_t n = problem.row_floats(), floats = (last - first) * n;
    const Taps taps(rows, from, until, first, last, problem.columns.kernel * problem.channels * problem.outputs, n);
    const int64_t bytes = problem.columns.out * ((problem.outputs + 7) / 8);
    const int64_t time_stride = problem.samples * rows.out * bytes, place = s * rows.out + first;
    for (int64_t t = 0; t < problem.steps; t += kTileSteps) {
      const int64_t steps = std::min(kTileSteps, problem.steps - t);
      for (int64_t k = 0; k < steps; ++k) {
        float* const currents = scratch.currents.data() + k * floats;
        for (int64_t i = 0; i < floats; i += n) std::memcpy(currents + i, bias_row.data(), n * sizeof(float));
        InputList& list = scratch.list;
        list.fill(problem, t + k, s, from, until);
        frame_rows()({list.inputs.data(), list.first.data(), taps.taps.data(), taps.first.data(), until - from,
                      columns.taps.data(), columns.first.data(), problem.weight, currents, problem.outputs});
      }
      fire(scratch.currents.data(), floats, bits + t * time_stride + place * bytes, time_stride, v + place * n, steps);
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

// The same where a window is a word of bits: nothing but these bits is kept beside registers.
struct WindowBands {
  const Problem& problem;
  const Options& o;
  const float* bias;  // [O]
  uint8_t* bits;      // [T, S, OH, OW, OB]
  float* v;           // [S, OH, OW, O]
  std::vector<float> weight{};    // [C, kh, kw, O]
  std::vector<int64_t> offset{};  // of the inputs of a window
  int64_t height = 1;             // of a band

  void plan(int64_t wanted) {
    const Problem& p = problem;
    const int64_t places = p.rows.kernel * p.columns.kernel;
    weight.resize(p.channels * places * p.outputs);
    for (int64_t c = 0; c < p.channels; ++c) {
      for (int64_t i = 0; i < places; ++i) {
        std::copy_n(p.weight + (i * p.channels + c) * p.outputs, p.outputs,
                    weight.data() + (c * places + i) * p.outputs);
        offset.push_back(c * p.x.c_stride + i / p.columns.kernel * p.rows.dilation * p.x.y_stride +
                         i % p.columns.kernel * p.x.x_stride);
      }
    }
    const int64_t fit = kWindowBytes / (steps() * p.channels * task(0, 0).input_bytes()) - p.rows.kernel;
    height = std::clamp<int64_t>((p.rows.out + wanted - 1) / wanted, 1, std::max<int64_t>(1, fit / p.rows.stride));
  }

  int64_t steps() const { return std::min(kWindowSteps, problem.steps); }
  int64_t bands() const { return (problem.rows.out + height - 1) / height; }

  struct Scratch {
    std::vector<uint8_t> inputs;
    std::vector<uint64_t> masks;
  };
  Scratch scratch() const {
    const WindowTask one = task(0, 0);
    return {std::vector<uint8_t>(steps() * problem.channels * one.input_rows() * one.input_bytes()),
            std::vector<uint64_t>(steps() * one.mask_columns())};
  }

  WindowTask task(int64_t s, int64_t band) const {
    const Problem& p = problem;
    const int64_t element = p.x.counts ? 1 : 4, first = band * height, place = s * p.rows.out + first;
    const int64_t bytes = p.row_floats() / 8;
    return {p.x.data + s * p.x.s_stride * element, p.x.counts, p.x.table, p.x.t_stride, p.x.c_stride, p.x.y_stride,
            p.x.x_stride, p.channels, p.rows.in, p.columns.in, p.rows.kernel, p.columns.kernel, p.rows.stride,
            p.columns.stride, p.rows.padding, p.columns.padding, p.rows.dilation, first,
            std::min(first + height, p.rows.out), p.columns.out, p.outputs, steps(), weight.data(), offset.data(), bias,
            bits + place * bytes, p.samples * p.rows.out * bytes, v + place * p.row_floats(), nullptr, nullptr};
  }

  void run(int64_t s, int64_t band, Scratch& scratch) const {
    WindowTask all = task(s, band);
    all.inputs = scratch.inputs.data(), all.masks = scratch.masks.data();
    const int64_t element = all.counts ? 1 : 4;
    for (int64_t t = 0; t < problem.steps; t += kWindowSteps) {
      WindowTask now = all;
      now.steps = std::min(kWindowSteps, problem.steps - t);
      now.x = static_cast<const char*>(all.x) + t * all.t_stride * element;
      now.bits = all.bits + t * all.bits_stride;
      window_rows()(now, o.p, o.variant);
    }
  }
};

template <class Work>
void run_bands(const Work& work, int64_t bands, const Problem& problem, int64_t height) {
  const int64_t work_of_band = problem.row_floats() * height * problem.steps;
  const int64_t grain = std::max<int64_t>(1, kParallelGrain / work_of_band);
  torch::stable::parallel_for(0, problem.samples * bands, grain, [&](int64_t begin, int64_t end) {
    auto scratch = work.scratch();
    for (int64_t index = begin; index < end; ++index) work.run(index / bands, index % bands, scratch);
  });
}

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
  static const std::vector<float> themselves = [] {
    std::vector<float> counts(256);
    for (int i = 0; i < 256; ++i) counts[i] = static_cast<float>(i);
    return counts;
  }();
  const Frames frames{static_cast<const char*>(x.data_ptr()),
                      table.has_value() ? static_cast<const float*>(table->data_ptr()) : themselves.data(),
                      x.stride(0), x.stride(1), x.stride(2), x.stride(3), x.stride(4),
                      x.scalar_type() == ScalarType::Byte};
  Problem problem{frames, Window(weight.size(0), stride, padding, dilation, 0, x.size(3)),
                  Window(weight.size(1), stride, padding, dilation, 1, x.size(4)),
                  static_cast<const float*>(weight.data_ptr()), x.size(2), weight.size(3), x.size(0), x.size(1)};
  for (const Window* window : {&problem.rows, &problem.columns}) {
    require_frames(window->in + 2 * window->padding >= window->dilation * (window->kernel - 1) + 1,
                   "the frames of x_seq are smaller than the window");
  }
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
  std::vector<float> bias_of(outputs, 0.0f);
  if (bias.has_value()) std::copy_n(static_cast<const float*>(bias->data_ptr()), outputs, bias_of.data());
  auto* const out = static_cast<uint8_t*>(bits.data_ptr());
  const int64_t fewest = kFewestTasks / problem.samples;  // enough of them for the threads to share
  if (takes_windows(problem.channels, problem.rows.kernel, problem.columns.kernel, problem.columns.stride,
                    problem.columns.dilation, outputs)) {
    WindowBands work{problem, o, bias_of.data(), out, v};
    work.plan(std::clamp<int64_t>(fewest, 1, rows));
    run_bands(work, work.bands(), problem, work.height);
    return {bits, v_last};
  }
  std::vector<float> bias_row(n);
  for (int64_t i = 0; i < n; i += outputs) std::copy_n(bias_of.data(), outputs, &bias_row[i]);
  const auto& variants = forward_table().bits[kFloat32];
  const Taps taps(problem.columns, 0, problem.columns.in, 0, columns, problem.channels * outputs, outputs);
  const int64_t wanted = std::max((rows * n + kBandFloats - 1) / kBandFloats, fewest);  // small enough for the caches
  const int64_t height = (rows + std::clamp<int64_t>(wanted, 1, rows) - 1) / std::clamp<int64_t>(wanted, 1, rows);
  const Bands work{problem, o, variants[o.variant.decay_input][o.variant.divide][o.variant.soft_reset], taps, bias_row,
                   out, v, height};
  run_bands(work, (rows + height - 1) / height, problem, height);
  return {bits, v_last};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) { m.impl("frame_conv_lif", TORCH_BOX(&frame_conv_lif)); }

}  // namespace snn_core
