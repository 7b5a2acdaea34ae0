// Dense activations x compressed weights on the CPU: a few rows without ever writing the weight out, more by torch's
// product with the weight written out for the time of the call.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <vector>

#include "native/cpu_features.h"
#include "native/row_view.h"
#include "nm_matmul/nm_arguments.h"
#include "nm_matmul/nm_engine.h"

namespace snn_core {

// In nm_compress.cpp.
Tensor nm_decompress(Tensor values, Tensor indices, int64_t n, int64_t m, int64_t rows, MaybeTensor scale,
                     ScalarType out_dtype);

namespace {

enum { kAutomatic = 0, kFewRows = 1, kWrittenOut = 2 };
constexpr int64_t kTaskOutputs = 64;
constexpr int64_t kGrainWork = 1 << 18;  // weights below which a thread is not worth waking

const NMDenseKernel& dense_kernel() { SNN_PICK_VBMI(nm_dense) }

struct FewRows {
  const NMWeight& w;
  const Tensor& x;
  const Tensor& y;
  const float *scale, *bias;

  void run() const {
    const NMDenseKernel& kernel = dense_kernel();
    const int64_t rows = x.size(0), k = w.k();
    const int type = nm_type(x, "x");
    for (int64_t first = 0; first < rows; first += kNMDenseRows) {
      const int count = static_cast<int>(std::min<int64_t>(kNMDenseRows, rows - first));
      void* const prepared = nm_scratch(kPanelScratch, kernel.prepared_bytes(w, count));
      kernel.prepare(w, static_cast<const char*>(x.data_ptr()) + first * k * kNMTypeBytes[type], type, k, count,
                     prepared);
      const int64_t work = std::max<int64_t>(1, kTaskOutputs * k * count);
      torch::stable::parallel_for(
          0, (w.outputs + kTaskOutputs - 1) / kTaskOutputs, std::max<int64_t>(1, kGrainWork / work),
          [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
              outputs(prepared, type, first, count, task * kTaskOutputs,
                      std::min(w.outputs, (task + 1) * kTaskOutputs));
            }
          });
    }
  }

 private:
  void outputs(const void* prepared, int type, int64_t row, int rows, int64_t first, int64_t last) const {
    alignas(64) float sums[kNMDenseRows * kTaskOutputs];
    dense_kernel().run(w, prepared, type, rows, first, last, sums - first, kTaskOutputs);
    nm_event().finish(sums, kTaskOutputs, rows, last - first, scale != nullptr ? scale + first : nullptr,
                      bias != nullptr ? bias + first : nullptr);
    const Storage storage = storage_of(y);
    for (int r = 0; r < rows; ++r) {
      char* const target = static_cast<char*>(y.data_ptr()) + ((row + r) * w.outputs + first) * storage_bytes(storage);
      row_tools().from_float[storage](sums + r * kTaskOutputs, target, last - first);
    }
  }
};

Tensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  MaybeTensor cast;
  if (bias.has_value()) cast = torch::stable::to(*bias, x.scalar_type());
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x), torch::stable::detail::from(weight),
                                    torch::stable::detail::from(cast)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor nm_dense(Tensor x, Tensor values, MaybeTensor indices, int64_t n, int64_t m, std::vector<int64_t> weight_shape,
                MaybeTensor scale, MaybeTensor bias, int64_t path) {
  storage_of_dtype(x.scalar_type(), "x");
  require_nm(x.dim() == 2 && x.is_contiguous(), "x must be [R, K], contiguous");
  require_nm(indices.has_value(), "indices must be there: nm_dense takes compressed weights");
  require_nm(weight_shape.size() == 4 && weight_shape[0] >= 0 && weight_shape[1] == x.size(1) &&
                 weight_shape[2] == 1 && weight_shape[3] == 1,
             "weight_shape must be [O, K, 1, 1] with the K of x");
  require_nm(path >= kAutomatic && path <= kWrittenOut, "path is not there");
  const int64_t outputs = weight_shape[0];
  const NMWeight w = make_weight(values, indices, n, m, outputs, 1, weight_shape[1]);
  const float* const scales = output_vector(scale, outputs, "scale");
  const float* const biases = output_vector(bias, outputs, "bias");
  const bool few = dense_kernel().run != nullptr && dense_kernel().takes(w);
  if (path == kFewRows) require_nm(few, "path 1 does not take this weight on this machine");
  if (path == kFewRows || (path == kAutomatic && few && x.size(0) <= kNMDenseRows)) {
    Tensor y = empty_strided(x, {x.size(0), outputs}, {std::max<int64_t>(1, outputs), 1}, x.scalar_type());
    if (y.numel() > 0) FewRows{w, x, y, scales, biases}.run();
    return y;
  }
  return linear(x, nm_decompress(values, *indices, n, m, outputs, scale, x.scalar_type()), bias);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) { m.impl("nm_dense", TORCH_BOX(&nm_dense)); }

}  // namespace snn_core
