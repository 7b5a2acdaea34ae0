// nm_matmul on CUDA: launchers and registration, host code alone. Device text: nm_gemm_kernels.cuh (tensor cores),
// nm_rows_kernels.cuh (few rows), nm_convert_kernels.cuh (the rest).
//
// Work is cut by shapes alone, never by the size of the GPU, so that sums are the same bits everywhere. Nothing waits
// for the device, so that calls can be captured in CUDA graphs.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "nm_matmul/nm_cuda_spikes.h"
#include "nm_matmul/nm_cuda_weight.h"
#if defined(SNN_EMULATED)
#include "nm_matmul/nm_fragments.cuh"
#endif

namespace snn_core {
namespace {

using OptionalTensor = std::optional<Tensor>;

// ---- Dense activations.

CudaKernel<RowsArguments> rows_kernel(const NMWeightArguments& w, const Tensor& x, int x_type, int rows, bool& wide) {
  const auto* const indices = reinterpret_cast<const void*>(w.indices);
  wide = w.n == 2 && w.m == 4 && w.k % 16 == 0 && aligned16(w.values) && aligned16(indices) && aligned16(x.data_ptr());
  const auto kernel = wide ? cuda_nm_rows_wide(w.type, x_type, rows) : nullptr;
  wide = kernel != nullptr;
  return wide ? kernel : cuda_nm_rows(w.type, x_type, rows);
}

// Without tensor cores, up to 4 rows at a time.
void dense_by_rows(const Launcher& launch, const NMWeightArguments& w, const Tensor& x, const Tensor& y) {
  RowsArguments a{};
  a.values = w.values, a.indices = w.indices, a.index_bytes = w.index_bytes, a.x = x.data_ptr();
  a.rows = x.size(0), a.outputs = w.outputs, a.k = w.k;
  a.n = w.n, a.m = w.m, a.bits = w.bits;
  a.scale = w.scale, a.bias = w.bias, a.out = y.data_ptr();
  bool wide = false;
  const int rows = static_cast<int>(std::min<int64_t>(a.rows, 4));
  const auto kernel = rows_kernel(w, x, cuda_type(x.scalar_type(), "x"), rows, wide);
  const int64_t bands = (a.rows + 3) / 4, warps = bands * (wide ? (a.outputs + 1) / 2 : a.outputs);
  launch.together(kernel, blocks_for(warps * 32, kRowsThreads), kRowsThreads, 0, a);
}

void dense_by_mma(const Launcher& launch, const NMWeightArguments& w, MmaForm form, const Tensor& x, const Tensor& y,
                  int64_t path) {
  const PreparedWeight weight(launch, x, w, form, 0, w.outputs);
  GemmArguments a{};
  a.input = static_cast<const unsigned char*>(x.data_ptr());
  a.input_stride = w.k * 2;
  OptionalTensor padded;
  if (weight.k_padded != w.k || !aligned16(x.data_ptr())) {
    a.input_stride = weight.k_padded * 2;
    padded = scratch_bytes(x, x.size(0) * a.input_stride);
    const PadArguments pad{x.data_ptr(), padded->data_ptr(), x.size(0), w.k * 2, a.input_stride};
    launch(cuda_nm_pad(), blocks_for(x.size(0) * weight.k_padded, kConvertThreads), kConvertThreads, pad);
    a.input = static_cast<const unsigned char*>(padded->data_ptr());
  }
  a.rows = x.size(0);
  a.factor = 1.0f;
  a.scale = w.scale, a.bias = w.bias;
  a.out = y.data_ptr(), a.out_stride = w.outputs, a.out_type = cuda_type(y.scalar_type(), "y");
  gemm(launch, x, weight, false, path, a);
}

// Up to this many rows the tensor cores would mostly multiply rows that are not there.
constexpr int64_t kFewRows = 4;

Tensor nm_dense(Tensor x, Tensor values, OptionalTensor indices, int64_t n, int64_t m, std::vector<int64_t> weight_shape,
                OptionalTensor scale, OptionalTensor bias, int64_t path) {
  require_nm(x.dim() == 2 && x.is_contiguous(), "x must be [rows, K], contiguous");
  const int x_type = cuda_type(x.scalar_type(), "x");
  require_nm(x_type <= kCudaFloat16, "x must be float32, bfloat16 or float16");
  require_nm(indices.has_value(), "indices are missing: nm_dense takes compressed weights");
  const NMWeightArguments w(x, values, indices, n, m, weight_shape, scale, bias);
  require_nm(x.size(1) == w.k, "x must have as many columns as the weight");
  const Launcher launch(x.get_device_index());
  Tensor y = contiguous_empty(x, {x.size(0), w.outputs}, x.scalar_type());
  const MmaForm form = mma_form(w.type, x_type);
  check_path(launch, w, path);
  require_nm(path <= kCudaFewRows || form.planes > 0,
             "paths mma_sp and wgmma_sp need 16-bit x, and a weight that is exact in parts of its type");
  if (y.numel() == 0) return y;
  bool wide = false;
  rows_kernel(w, x, x_type, 1, wide);
  const bool few = path == kCudaAutomatic && wide && x.size(0) <= kFewRows;
  if (path == kCudaFewRows || form.planes == 0 || few) {
    dense_by_rows(launch, w, x, y);
  } else {
    dense_by_mma(launch, w, form, x, y, path);
  }
  return y;
}

// ---- Packed spikes.

Tensor nm_spikes(Tensor bits, int64_t channels, Tensor values, OptionalTensor indices, int64_t n, int64_t m,
                 std::vector<int64_t> weight_shape, OptionalTensor scale, OptionalTensor bias,
                 std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                 int64_t groups, ScalarType out_dtype, int64_t path) {
  const SpikeProduct product(bits, channels, values, indices, n, m, weight_shape, scale, bias, stride, padding, dilation,
                             groups, path);
  require_nm(cuda_type(out_dtype, "out_dtype") <= kCudaFloat16, "out_dtype must be float32, bfloat16 or float16");
  const Launcher launch(bits.get_device_index());
  Tensor y = contiguous_empty(bits, product.out_size(), out_dtype);
  product.run(launch, bits, y);
  return y;
}

std::tuple<Tensor, Tensor> nm_spikes_lif(Tensor bits, int64_t channels, Tensor values, OptionalTensor indices, int64_t n,
                                         int64_t m, std::vector<int64_t> weight_shape, OptionalTensor scale,
                                         OptionalTensor bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                                         std::vector<int64_t> dilation, int64_t groups, int64_t steps,
                                         OptionalTensor v0, double tau, double v_threshold,
                                         std::optional<double> v_reset, bool decay_input, bool packed,
                                         ScalarType out_dtype, int64_t path) {
  const SpikeProduct product(bits, channels, values, indices, n, m, weight_shape, scale, bias, stride, padding, dilation,
                             groups, path);
  require_nm(cuda_type(out_dtype, "out_dtype") <= kCudaFloat16, "out_dtype must be float32, bfloat16 or float16");
  require_nm(steps >= 1 && steps <= INT32_MAX && bits.size(0) % steps == 0,
             "steps must be at least 1 and divide the batch of bits");
  const Launcher launch(bits.get_device_index());
  const Tensor x = contiguous_empty(bits, product.out_size(), ScalarType::Float);
  product.run(launch, bits, x);
  return lif_of_product(launch, x, steps, v0, tau, v_threshold, v_reset, decay_input, packed, out_dtype);
}

// ---- Compression.

Tensor nm_decompress(Tensor values, Tensor indices, int64_t n, int64_t m, int64_t rows, OptionalTensor scale,
                     ScalarType out_dtype) {
  require_nm(rows >= 0 && n >= 1 && (rows > 0 ? values.numel() % (rows * n) == 0 : values.numel() == 0),
             "values must hold whole rows of blocks of n");
  const int64_t k = rows > 0 ? values.numel() / (rows * n) * m : 0;
  const NMWeightArguments w(values, values, indices, n, m, {rows, k, 1, 1}, scale, std::nullopt);
  DecompressArguments a{};
  a.values = w.values, a.indices = w.indices, a.index_bytes = w.index_bytes, a.scale = w.scale;
  a.rows = rows, a.k = k, a.n = w.n, a.m = w.m, a.bits = w.bits;
  a.type = w.type, a.out_type = cuda_type(out_dtype, "out_dtype");
  require_nm(a.out_type <= kCudaFloat16 || (a.out_type == a.type && a.scale == nullptr),
             "out_dtype must be float32, bfloat16 or float16, or without scale that of values");
  const Launcher launch(values.get_device_index());
  Tensor dense = contiguous_empty(values, {rows, k}, out_dtype);
  if (dense.numel() == 0) return dense;
  a.dense = dense.data_ptr();
  const bool by_four = m % 4 == 0;
  launch(cuda_nm_decompress(by_four), blocks_for(dense.numel() / (by_four ? 4 : 1), kConvertThreads), kConvertThreads, a);
  return dense;
}

std::tuple<Tensor, Tensor, Tensor> nm_compress(Tensor dense, OptionalTensor mask, int64_t n, int64_t m) {
  require_nm(dense.dim() == 2 && dense.is_contiguous(), "dense must be [rows, K], contiguous");
  require_nm(m >= 2 && m <= 256 && n >= 1 && n <= m, "n and m must be a pattern with m from 2 to 256");
  require_nm(dense.size(1) % m == 0, "K of dense must be a multiple of m");
  const int type = cuda_type(dense.scalar_type(), "dense");
  if (mask.has_value()) {
    require_nm(mask->scalar_type() == ScalarType::Bool && mask->is_contiguous() && mask->dim() == 2 &&
                   mask->size(0) == dense.size(0) && mask->size(1) == dense.size(1) && same_place(*mask, dense),
               "mask must be bool, contiguous, of dense's shape and on its device");
  }
  CompressArguments a{};
  a.dense = dense.data_ptr();
  a.mask = mask.has_value() ? static_cast<const uint8_t*>(mask->data_ptr()) : nullptr;
  a.blocks = dense.numel() / m;
  a.n = static_cast<int>(n), a.m = static_cast<int>(m), a.bits = index_bits(m);
  const int bytes = kCudaTypeBytes[type];
  a.sign = type == kCudaInt8 ? 0u : 1u << (8 * bytes - 1);
  a.magnitude = static_cast<uint32_t>((uint64_t{1} << 8 * bytes) - 1) & ~a.sign;
  const Launcher launch(dense.get_device_index());
  Tensor values = contiguous_empty(dense, {a.blocks, n}, dense.scalar_type());
  Tensor indices = contiguous_empty(dense, {(a.blocks * n * a.bits + 7) / 8}, ScalarType::Byte);
  Tensor violations = contiguous_empty(dense, {}, ScalarType::Long);
  a.values = values.data_ptr();
  a.indices = static_cast<uint8_t*>(indices.data_ptr());
  a.violations = static_cast<unsigned long long*>(violations.data_ptr());
  launch(cuda_nm_no_violations(), 1, 1, a);
  if (a.blocks > 0) {
    launch(cuda_nm_compress(bytes), blocks_for((a.blocks + 7) / 8, kConvertThreads), kConvertThreads, a);
  }
  return {values, indices, violations};
}

}  // namespace

#if defined(SNN_EMULATED)
// What the model of mma.sp takes the metadata of 32 lanes for: the 4 bits of each row of 16 and each four slots.
Tensor mma_metadata(Tensor words, int64_t bytes, int64_t selector) {
  MmaOperand<float> operands[32] = {};
  MmaOperand<float>* lanes[32];
  for (int lane = 0; lane < 32; ++lane) {
    operands[lane].metadata = static_cast<const uint32_t*>(words.data_ptr())[lane];
    lanes[lane] = &operands[lane];
  }
  const int chunks = bytes == 2 ? 8 : 16;
  Tensor result = contiguous_empty(words, {16, chunks}, ScalarType::Byte);
  for (int i = 0; i < 16 * chunks; ++i) {
    static_cast<uint8_t*>(result.data_ptr())[i] = static_cast<uint8_t>(
        metadata_of(lanes, i / chunks, i % chunks, static_cast<int>(bytes), static_cast<int>(selector)));
  }
  return result;
}

#define SNN_WEIGHT "Tensor values, Tensor? indices, int n, int m, int[] weight_shape, Tensor? scale, Tensor? bias"
#define SNN_CONV "int[] stride, int[] padding, int[] dilation, int groups"
STABLE_TORCH_LIBRARY_FRAGMENT(snn_core_emulated, m) {
  m.def("nm_spikes(Tensor bits, int channels, " SNN_WEIGHT ", " SNN_CONV ", ScalarType out_dtype, int path) -> Tensor");
  m.def("nm_spikes_lif(Tensor bits, int channels, " SNN_WEIGHT ", " SNN_CONV
        ", int steps, Tensor? v0, float tau, float v_threshold, float? v_reset, bool decay_input, bool packed, "
        "ScalarType out_dtype, int path) -> (Tensor, Tensor)");
  m.def("nm_dense(Tensor x, " SNN_WEIGHT ", int path) -> Tensor");
  m.def("nm_decompress(Tensor values, Tensor indices, int n, int m, int rows, Tensor? scale, ScalarType out_dtype)"
        " -> Tensor");
  m.def("nm_compress(Tensor dense, Tensor? mask, int n, int m) -> (Tensor, Tensor, Tensor)");
  m.def("mma_metadata(Tensor words, int bytes, int selector) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(snn_core_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(snn_core, CUDA, m) {
#endif
  m.impl("nm_spikes", TORCH_BOX(&nm_spikes));
  m.impl("nm_spikes_lif", TORCH_BOX(&nm_spikes_lif));
  m.impl("nm_dense", TORCH_BOX(&nm_dense));
  m.impl("nm_decompress", TORCH_BOX(&nm_decompress));
  m.impl("nm_compress", TORCH_BOX(&nm_compress));
#if defined(SNN_EMULATED)
  m.impl("mma_metadata", TORCH_BOX(&mma_metadata));
#endif
}

}  // namespace snn_core
