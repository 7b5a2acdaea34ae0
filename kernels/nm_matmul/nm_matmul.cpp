// The nm_matmul operators on packed spikes, on the CPU: checks, and what becomes of the sums.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "lif/blocks.h"
#include "lif/options.h"
#include "nm_matmul/nm_arguments.h"
#include "nm_matmul/nm_engine.h"
#include "nm_matmul/nm_layer.h"
#include "nm_matmul/nm_paths.h"

namespace snn_core {
namespace {

// The arguments that nm_spikes and nm_spikes_lif have in common.
struct SpikeArguments {
  Tensor bits;
  int64_t channels;
  Tensor values;
  MaybeTensor indices;
  int64_t n, m;
  std::vector<int64_t> weight_shape;
  MaybeTensor scale, bias;
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups, path;

  NMProblem problem(int64_t steps) const {
    const std::vector<int64_t> kernel = check();
    return solved(SpikeWindows(bits, channels, kernel, stride, padding, dilation), steps);
  }

  // Of contiguous bits of any number of dimensions.
  NMProblem folded_problem(bool image, int64_t steps) const {
    const std::vector<int64_t> kernel = check();
    return solved(SpikeWindows(bits, image, channels, kernel, stride, padding, dilation), steps);
  }

 private:
  // Returns the size of the window.
  std::vector<int64_t> check() const {
    require_nm(weight_shape.size() == 4 && *std::min_element(weight_shape.begin(), weight_shape.end()) >= 0 &&
                   weight_shape[2] >= 1 && weight_shape[3] >= 1,
               "weight_shape must be [O, C / groups, kh, kw]");
    const int64_t outputs = weight_shape[0], segment = weight_shape[1];
    require_nm(groups >= 1 && outputs % groups == 0, "groups must divide the outputs of weight_shape");
    require_nm(segment * groups == channels, "channels must be groups times the second entry of weight_shape");
    require_nm(groups == 1 || segment % 8 == 0,
               "groups: channels of a group must be a multiple of 8 (not implemented)");
    require_nm(path >= kNMAutomatic && path <= kNMKept, "path is not there");
    return {weight_shape[2], weight_shape[3]};
  }

  NMProblem solved(const SpikeWindows& windows, int64_t steps) const {
    const int64_t outputs = weight_shape[0], segment = weight_shape[1];
    NMProblem problem{make_weight(values, indices, n, m, outputs, weight_shape[2] * weight_shape[3], segment),
                      windows,
                      groups,
                      steps,
                      output_vector(scale, outputs, "scale"),
                      output_vector(bias, outputs, "bias"),
                      static_cast<int>(path)};
    require_nm(same_device(values, bits), "values is not on the device of bits");
    if (problem.path == kNMAutomatic) {
      problem.path = nm_fastest_path(problem.weight, problem.windows.rows(),
                                     [&] { return nm_firing_rate(problem.windows); });
    }
    return problem;
  }
};

// Sums as a tensor [rows, outputs].
class StoreSink : public NMSink {
 public:
  StoreSink(const Tensor& y, int64_t outputs)
      : data_(static_cast<char*>(y.data_ptr())), storage_(storage_of(y)), outputs_(outputs) {}

  float* place(const NMBlock& block, int64_t first, int64_t) const override {
    return storage_ == kFloat32 ? reinterpret_cast<float*>(data_) + block.row(0) * outputs_ + first : nullptr;
  }

  void take(const NMBlock& block, int64_t first, int64_t last, float* sums, int64_t ld) const override {
    if (sums == place(block, first, last)) return;
    for (int64_t i = 0; i < block.rows(); ++i) {
      char* const row = data_ + (block.row(i) * outputs_ + first) * storage_bytes(storage_);
      row_tools().from_float[storage_](sums + i * ld, row, last - first);
    }
  }

 private:
  char* data_;
  Storage storage_;
  int64_t outputs_;
};

// Sums through a LIF over the times of a block.
class LifSink : public NMSink {
 public:
  LifSink(const Options& options, const MaybeTensor& v0, const Tensor& s, const Tensor& v_last, bool packed,
          int64_t outputs)
      : options_(options), v0_(v0.has_value() ? static_cast<const float*>(v0->data_ptr()) : nullptr),
        v_last_(static_cast<float*>(v_last.data_ptr())), s_(static_cast<char*>(s.data_ptr())), packed_(packed),
        storage_(packed ? kFloat32 : storage_of(s)), outputs_(outputs) {
    const LifVariant& v = options_.variant;
    const auto& table = packed ? forward_table().bits[kFloat32] : forward_table().spikes[kFloat32];
    kernel_ = table[v.decay_input][v.divide][v.soft_reset];
  }

  float* place(const NMBlock&, int64_t, int64_t) const override { return nullptr; }

  void take(const NMBlock& block, int64_t first, int64_t last, float* sums, int64_t ld) const override {
    // [times, positions, ld] is one run of neurons at every time, columns past `last` included.
    const int64_t neurons = block.count * ld, width = last - first;
    const int64_t out_bytes = packed_ ? neurons / 8 : 4 * neurons;
    auto* const v = static_cast<float*>(nm_scratch(kLifScratch, 4 * neurons + block.steps * out_bytes + 64));
    char* const out = reinterpret_cast<char*>(v + neurons);
    for (int64_t j = 0; j < block.count; ++j) {
      float* const row = v + j * ld;
      std::fill_n(row, ld, options_.p.v_reset);
      if (v0_ != nullptr) std::copy_n(v0_ + (block.position + j) * outputs_ + first, width, row);
    }
    const ForwardRows rows{sums, neurons, out, packed_ ? out_bytes : neurons, v, neurons, block.steps, false};
    kernel_(rows, options_.p);
    for (int64_t j = 0; j < block.count; ++j) {
      std::copy_n(v + j * ld, width, v_last_ + (block.position + j) * outputs_ + first);
    }
    for (int64_t i = 0; i < block.rows(); ++i) {
      packed_ ? store_bits(block.row(i), first, width, out + i * ld / 8)
              : store_spikes(block.row(i), first, width, out + i * ld * 4);
    }
  }

 private:
  void store_bits(int64_t row, int64_t first, int64_t width, const char* bits) const {
    char* const target = s_ + row * ((outputs_ + 7) / 8) + first / 8;
    std::memcpy(target, bits, (width + 7) / 8);
    if (width % 8 != 0) target[width / 8] = static_cast<char>(bits[width / 8] & ((1 << width % 8) - 1));
  }

  void store_spikes(int64_t row, int64_t first, int64_t width, const char* spikes) const {
    char* const target = s_ + (row * outputs_ + first) * storage_bytes(storage_);
    row_tools().from_float[storage_](reinterpret_cast<const float*>(spikes), target, width);
  }

  const Options& options_;
  const float* v0_;
  float* v_last_;
  char* s_;
  bool packed_;
  Storage storage_;
  int64_t outputs_;
  ForwardKernel kernel_;
};

Tensor contiguous_like(const Tensor& like, const std::vector<int64_t>& size, ScalarType dtype) {
  std::vector<int64_t> stride(size.size(), 1);
  for (size_t d = size.size() - 1; d > 0; --d) stride[d - 1] = stride[d] * std::max<int64_t>(1, size[d]);
  return empty_strided(like, size, stride, dtype);
}

Tensor nm_spikes(Tensor bits, int64_t channels, Tensor values, MaybeTensor indices, int64_t n, int64_t m,
                 std::vector<int64_t> weight_shape, MaybeTensor scale, MaybeTensor bias, std::vector<int64_t> stride,
                 std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups, ScalarType out_dtype,
                 int64_t path) {
  storage_of_dtype(out_dtype, "out_dtype");
  const SpikeArguments arguments{bits, channels, values, indices, n, m, weight_shape, scale, bias, stride, padding,
                                 dilation, groups, path};
  const NMProblem problem = arguments.problem(1);
  const SpikeWindows& windows = problem.windows;
  Tensor y = contiguous_like(bits, {windows.batch, windows.out_h, windows.out_w, weight_shape[0]}, out_dtype);
  if (y.numel() == 0) return y;
  advise_huge_pages(y);
  nm_run(problem, StoreSink(y, weight_shape[0]));
  return y;
}

// nm_spikes as a layer calls it, with little around it: `form` is [n, m, O, C / groups, kh, kw, stride, padding,
// dilation (two each), groups]; bits are contiguous, [..., H, W, bytes] or [..., bytes], and the result has their
// leading dimensions: [..., O, OH, OW] (channels-last in memory), or [..., O].
Tensor nm_product(Tensor bits, Tensor values, MaybeTensor indices, MaybeTensor scale, MaybeTensor bias,
                  std::vector<int64_t> form, bool image, ScalarType out_dtype, int64_t path) {
  storage_of_dtype(out_dtype, "out_dtype");
  require_nm(form.size() == 13, "form must hold 13 integers");
  const auto part = [&](int first, int count) { return std::vector<int64_t>(&form[first], &form[first] + count); };
  int64_t channels = 0;
  require_nm(!__builtin_mul_overflow(form[3], form[12], &channels), "form: there are too many channels");
  const SpikeArguments arguments{bits, channels, values, indices, form[0], form[1], part(2, 4), scale, bias,
                                 part(6, 2), part(8, 2), part(10, 2), form[12], path};
  const NMProblem problem = arguments.folded_problem(image, 1);
  const SpikeWindows& windows = problem.windows;
  const int64_t outputs = form[2], lead = bits.dim() - (image ? 3 : 1);
  std::vector<int64_t> size, stride;
  for (int64_t d = 0; d < lead; ++d) size.push_back(bits.size(d));
  size.push_back(outputs);
  if (image) size.push_back(windows.out_h), size.push_back(windows.out_w);
  stride.assign(size.size(), 1);
  int64_t step = std::max<int64_t>(1, outputs);  // elements of what lies inside dimension d
  if (image) {
    stride[lead + 2] = step, step *= std::max<int64_t>(1, windows.out_w);
    stride[lead + 1] = step, step *= std::max<int64_t>(1, windows.out_h);
  }
  for (int64_t d = lead; d-- > 0; step *= std::max<int64_t>(1, size[d])) stride[d] = step;
  Tensor y = empty_strided(bits, size, stride, out_dtype);
  if (windows.rows() == 0 || outputs == 0) return y;
  advise_huge_pages(y);
  nm_run(problem, StoreSink(y, outputs));
  return y;
}

std::tuple<Tensor, Tensor> nm_spikes_lif(
    Tensor bits, int64_t channels, Tensor values, MaybeTensor indices, int64_t n, int64_t m,
    std::vector<int64_t> weight_shape, MaybeTensor scale, MaybeTensor bias, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups, int64_t steps, MaybeTensor v0,
    double tau, double v_threshold, std::optional<double> v_reset, bool decay_input, bool packed, ScalarType out_dtype,
    int64_t path) {
  storage_of_dtype(out_dtype, "out_dtype");
  require_nm(steps >= 1 && bits.dim() == 4 && bits.size(0) % steps == 0, "steps must divide the batch of bits");
  const SpikeArguments arguments{bits, channels, values, indices, n, m, weight_shape, scale, bias, stride, padding,
                                 dilation, groups, path};
  const NMProblem problem = arguments.problem(steps);
  const SpikeWindows& windows = problem.windows;
  const int64_t outputs = weight_shape[0], samples = windows.batch / steps;
  require_nm(groups == 1 || !packed || outputs / groups % 8 == 0,
             "groups: outputs of a group must be a multiple of 8 for packed spikes (not implemented)");
  const std::vector<int64_t> state{samples, windows.out_h, windows.out_w, outputs};
  if (v0.has_value()) {
    bool fits = v0->dim() == 4 && v0->scalar_type() == ScalarType::Float && v0->is_contiguous();
    for (int64_t d = 0; fits && d < 4; ++d) fits = v0->size(d) == state[d];
    require_nm(fits, "v0 must be float32 [S, OH, OW, O], contiguous");
  }
  const Options options = make_options(bits, std::nullopt, tau, v_threshold, v_reset, decay_input, false, 0, 1.0);
  Tensor v_last = contiguous_like(bits, state, ScalarType::Float);
  Tensor s = contiguous_like(bits, {windows.batch, windows.out_h, windows.out_w, packed ? (outputs + 7) / 8 : outputs},
                             packed ? ScalarType::Byte : out_dtype);
  if (v_last.numel() == 0) return {s, v_last};
  if (packed && nm_takes_layer(problem)) {
    const auto* const start = v0.has_value() ? static_cast<const float*>(v0->data_ptr()) : nullptr;
    nm_run_layer(problem, {options.p, options.variant, start, static_cast<float*>(v_last.data_ptr()),
                           static_cast<uint8_t*>(s.data_ptr())});
  } else {
    nm_run(problem, LifSink(options, v0, s, v_last, packed, outputs));
  }
  return {s, v_last};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) {
  m.impl("nm_spikes", TORCH_BOX(&nm_spikes));
  m.impl("nm_product", TORCH_BOX(&nm_product));
  m.impl("nm_spikes_lif", TORCH_BOX(&nm_spikes_lif));
}

}  // namespace snn_core
