// Launchers of nm_matmul that several operators share: products on the tensor cores, packed spikes x weight as a
// convolution, and LIF over its result.
#pragma once

#include <algorithm>
#include <tuple>

#include "lif/lif_cuda.h"
#include "lif/options.h"
#include "nm_matmul/nm_cuda_weight.h"
#include "spike_pack/spike_pack_cuda.h"

namespace snn_core {

// K is cut where the result has fewer tiles than this, into pieces of at least so many tiles of K.
constexpr int64_t kBlocksWanted = 256;
constexpr int64_t kLeastTiles = 4;
#if defined(SNN_EMULATED)
constexpr int64_t kMostSplits = 2;  // pieces long enough to go around the buffers in small tests
#else
constexpr int64_t kMostSplits = 16;
#endif
// Blocks of a persistent grid for each multiprocessor; about what its shared memory holds.
constexpr int64_t kBlocksResident = 2;

// The `path` argument of the operators (CUDA_PATHS in schema.py).
enum CudaPath : int64_t { kCudaAutomatic = 0, kCudaFewRows = 1, kCudaMma = 2, kCudaWarpgroup = 3 };

inline void check_path(const Launcher& launch, const NMWeightArguments& w, int64_t path) {
  require_nm(path >= kCudaAutomatic && path <= kCudaWarpgroup, "path must be 0, few_rows (1), mma_sp (2) or wgmma_sp (3)");
  if (path != kCudaWarpgroup) return;
  require_nm(launch.capability() == 90, "path wgmma_sp needs a GPU of compute capability 9.0");
  require_nm(w.fits_two_of_four(), "path wgmma_sp needs a weight that is 2:4 compressed, or fits that");
}

inline GemmKernel gemm_kernel(int type, bool sparse, bool spikes, int64_t rows) {
  if (type == kCudaInt8) return cuda_gemm_int8(sparse, spikes, rows);
  return type == kCudaBFloat16 ? cuda_gemm_bfloat16(sparse, spikes, rows) : cuda_gemm_float16(sparse, spikes, rows);
}

inline int64_t splits_for(int64_t tiles, int64_t k_tiles) {
  const int64_t wanted = std::min((kBlocksWanted + tiles - 1) / tiles, kMostSplits);
  return std::max<int64_t>(1, std::min(wanted, k_tiles / kLeastTiles));
}

// The product of a prepared weight and `a.input`; `a` has the input, the rows and what becomes of the sums.
inline void gemm(const Launcher& launch, const Tensor& like, const PreparedWeight& weight, bool spikes, int64_t path,
                 GemmArguments a) {
  // wgmma.sp is not chosen by itself before it has been measured.
  const GemmKernel kernel = path == kCudaWarpgroup ? cuda_warpgroup(weight.form.type, spikes)
                                                   : gemm_kernel(weight.form.type, weight.sparse, spikes, a.rows);
  a.values = weight.values, a.indices = weight.indices;
  a.value_stride = weight.value_stride, a.index_stride = weight.index_stride;
  a.outputs = static_cast<int>(weight.outputs), a.planes = weight.form.planes;
  a.k_tiles = static_cast<int>(weight.k_padded / gemm_tile_k(weight.form.type));
  const int64_t tiles = (a.rows + kernel.tile_rows - 1) / kernel.tile_rows *
                        ((weight.outputs + kernel.tile_outputs - 1) / kernel.tile_outputs);
  a.splits = static_cast<int>(splits_for(tiles, static_cast<int64_t>(a.planes) * a.k_tiles));
  const int64_t blocks = std::min(tiles * a.splits, kBlocksResident * launch.multiprocessors());
  if (a.splits == 1) {
    launch.together(kernel.kernel, blocks, kernel.threads, kernel.shared_bytes, a);
    return;
  }
  const Tensor partial = scratch_bytes(like, a.splits * a.rows * weight.outputs * 4);
  const ReduceArguments r{static_cast<const float*>(partial.data_ptr()), a.splits, a.outputs, a.rows, a.factor, a.scale,
                          a.bias, a.out, a.out_stride, a.out_type};
  a.out = partial.data_ptr();
  launch.together(kernel.kernel, blocks, kernel.threads, kernel.shared_bytes, a);
  launch(cuda_nm_reduce(), blocks_for(a.rows * weight.outputs, kConvertThreads), kConvertThreads, r);
}

// Packed spikes x weight, a convolution over channels-last images.
class SpikeProduct {
 public:
  SpikeProduct(const Tensor& bits, int64_t channels, const Tensor& values, const std::optional<Tensor>& indices,
               int64_t n, int64_t m, const std::vector<int64_t>& shape, const std::optional<Tensor>& scale,
               const std::optional<Tensor>& bias, const std::vector<int64_t>& stride,
               const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups, int64_t path)
      : weight_(bits, values, indices, n, m, shape, scale, bias), groups_(groups), path_(path) {
    require_nm(bits.scalar_type() == ScalarType::Byte && bits.dim() == 4, "bits must be uint8 [B, H, W, bytes]");
    require_nm(channels >= 0 && bits.size(3) == (channels + 7) / 8, "bits must hold ceil(channels / 8) bytes a pixel");
    require_nm(bits.size(3) <= 1 || bits.stride(3) == 1, "bits must have stride 1 in the last dimension");
    require_nm(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
               "stride, padding and dilation must have two entries");
    for (int d = 0; d < 2; ++d) {
      require_nm(stride[d] >= 1 && dilation[d] >= 1 && padding[d] >= 0,
                 "stride and dilation must be positive, padding must not be negative");
    }
    require_nm(groups >= 1 && weight_.outputs % groups == 0 && channels == weight_.channels * groups,
               "channels must be those of weight_shape times groups, which must divide the outputs");
    require_nm(groups == 1 || weight_.channels % 8 == 0, "groups of other than a multiple of 8 channels are not supported");
    fill_windows(bits, channels, stride, padding, dilation);
  }

  std::vector<int64_t> out_size() const { return {windows_.batch, windows_.out_height, windows_.out_width, weight_.outputs}; }

  // y: contiguous, of out_size().
  void run(const Launcher& launch, const Tensor& bits, const Tensor& y) const {
    check_path(launch, weight_, path_);
    if (y.numel() == 0) return;
    const MmaForm form = mma_form_of_spikes(weight_.type, path_ == kCudaWarpgroup);
    const int tile = gemm_tile_k(form.type);
    const int64_t words = (weight_.k + tile - 1) / tile * tile / 32, rows = y.numel() / weight_.outputs;
    const int64_t outputs = weight_.outputs / groups_;
    const int out_type = cuda_type(y.scalar_type(), "y");
    for (int64_t g = 0; g < groups_; ++g) {
      const PreparedWeight prepared(launch, bits, weight_, form, g * outputs, outputs);
      const Tensor gathered = scratch_bytes(bits, rows * words * 4);
      GatherArguments gather{};
      gather.windows = windows_;
      gather.channels = static_cast<int>(weight_.channels);
      gather.first_channel = static_cast<int>(g * weight_.channels);
      gather.words = static_cast<int>(words);
      gather.order = kCudaTypeBytes[form.type] == 1 ? kBytes : kHalves;
      gather.gathered = static_cast<uint32_t*>(gathered.data_ptr());
      launch(cuda_nm_gather(), blocks_for(rows * words, kConvertThreads), kConvertThreads, gather);
      GemmArguments a{};
      a.input = static_cast<const unsigned char*>(gathered.data_ptr());
      a.input_stride = words * 4;
      a.rows = rows;
      a.factor = form.type == kCudaInt8 ? 1.0f : 0.5f;  // kSpikeFactor (nm_fragments.cuh)
      a.scale = weight_.scale == nullptr ? nullptr : weight_.scale + g * outputs;
      a.bias = weight_.bias == nullptr ? nullptr : weight_.bias + g * outputs;
      a.out = static_cast<unsigned char*>(y.data_ptr()) + g * outputs * kCudaTypeBytes[out_type];
      a.out_stride = weight_.outputs;
      a.out_type = out_type;
      gemm(launch, bits, prepared, true, path_, a);
    }
  }

 private:
  void fill_windows(const Tensor& bits, int64_t channels, const std::vector<int64_t>& stride,
                    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
    const int64_t kernel[2] = {weight_.kernel_height, weight_.kernel_width};
    int64_t out[2];
    for (int d = 0; d < 2; ++d) {
      const int64_t room = bits.size(1 + d) + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1;
      require_nm(room >= 0 && kernel[d] >= 1, "the kernel is larger than the padded image of bits");
      out[d] = room / stride[d] + 1;
      require_nm(bits.size(1 + d) < INT32_MAX / 4 && padding[d] < INT32_MAX / 4 && stride[d] < INT32_MAX / 4 &&
                     dilation[d] * kernel[d] < INT32_MAX / 4,
                 "bits, padding or dilation is too large");
    }
    windows_ = {static_cast<const uint8_t*>(bits.data_ptr()), bits.stride(0), bits.stride(1), bits.stride(2),
                bits.size(0), static_cast<int>(channels), static_cast<int>(bits.size(1)), static_cast<int>(bits.size(2)),
                static_cast<int>(kernel[0]), static_cast<int>(kernel[1]), static_cast<int>(stride[0]),
                static_cast<int>(stride[1]), static_cast<int>(padding[0]), static_cast<int>(padding[1]),
                static_cast<int>(dilation[0]), static_cast<int>(dilation[1]), static_cast<int>(out[0]),
                static_cast<int>(out[1])};
  }

  NMWeightArguments weight_;
  int64_t groups_, path_;
  Windows windows_{};
};

// Spikes in `out_dtype` from packed ones: [..., bytes] -> [..., size].
inline Tensor unpacked(const Launcher& launch, const Tensor& packed, std::vector<int64_t> size, ScalarType dtype) {
  using A = SpikePackArguments;
  const int64_t outputs = size.back();
  Tensor s = contiguous_empty(packed, size, dtype);
  if (s.numel() == 0) return s;
  A a{};
  a.spikes = s.data_ptr();
  a.packed = static_cast<uint8_t*>(packed.data_ptr());
  a.size = outputs;
  a.lane_stride = 1;
  a.one = dtype == ScalarType::Float ? 0x3f800000u : dtype == ScalarType::BFloat16 ? 0x3f80u : 0x3c00u;
  Geometry<A::kCount> geometry;
  const int64_t bytes = (outputs + 7) / 8;
  geometry.add_dimension(s.numel() / outputs, {outputs, bytes, 0});
  geometry.add_dimension(bytes, {8, 1, outputs % 8 != 0 ? 8 : 0});
  geometry.coalesce();
  a.geometry = to_device(geometry, 1);
  launch(cuda_spike_unpack(s.element_size(), outputs % 8 == 0), blocks_for(a.geometry.groups, kSpikePackThreads),
         kSpikePackThreads, a);
  return s;
}

// LIF over x [steps * S, OH, OW, O] in float32, time first: (spikes, v_last [S, OH, OW, O]).
inline std::tuple<Tensor, Tensor> lif_of_product(const Launcher& launch, const Tensor& x, int64_t steps,
                                                 const std::optional<Tensor>& v0, double tau, double v_threshold,
                                                 std::optional<double> v_reset, bool decay_input, bool packed,
                                                 ScalarType out_dtype) {
  using A = PackedArguments;
  const std::vector<int64_t> size{x.size(0), x.size(1), x.size(2), x.size(3)};
  const std::vector<int64_t> state{size[0] / steps, size[1], size[2], size[3]};
  const int64_t bytes = (size[3] + 7) / 8, pixels = state[0] * size[1] * size[2];
  if (v0.has_value()) {
    bool fits = v0->dim() == 4 && v0->scalar_type() == ScalarType::Float && same_place(*v0, x);
    for (int d = 0; fits && d < 4; ++d) fits = v0->size(d) == state[d];
    require_nm(fits, "v0 must be float32 [batch / steps, OH, OW, O] on the device of bits");
  }
  const Options o = make_options(x, std::nullopt, tau, v_threshold, v_reset, decay_input, false, 0, 1.0);
  Tensor s = contiguous_empty(x, {size[0], size[1], size[2], bytes}, ScalarType::Byte);
  Tensor v_last = contiguous_empty(x, state, ScalarType::Float);
  if (s.numel() > 0) {
    Geometry<A::kCount> geometry;
    const int64_t outer[3] = {size[1] * size[2], size[2], 1};  // pixels that a step of a dimension passes
    for (int d = 0; d < 4; ++d) {
      const int64_t scale = d == 3 ? 8 : 1, x_stride = d == 3 ? 8 : outer[d] * size[3];
      geometry.add_dimension(d == 3 ? bytes : state[d],
                             {x_stride, d == 3 ? 1 : outer[d] * bytes, v0.has_value() ? v0->stride(d) * scale : x_stride,
                              x_stride, d == 3 && size[3] % 8 != 0 ? 8 : 0});
    }
    geometry.coalesce();
    A a{};
    a.neuron = {static_cast<int>(steps), o.p, o.variant, nullptr};
    a.size = size[3];
    a.operand[A::kX] = {x.data_ptr(), pixels * size[3]};
    a.operand[A::kPacked] = {s.data_ptr(), pixels * bytes};
    if (v0.has_value()) a.operand[A::kV0] = {v0->data_ptr()};
    a.operand[A::kVLast] = {v_last.data_ptr()};
    a.lane_stride[A::kX] = a.lane_stride[A::kVLast] = 1;
    a.lane_stride[A::kV0] = v0.has_value() ? v0->stride(3) : 0;
    a.geometry = to_device(geometry, 1);
    launch(cuda_lif_float32.packed(size[3] % 8 == 0), blocks_for(a.geometry.groups, kForwardThreads), kForwardThreads, a);
  }
  if (packed) return {s, v_last};
  return {unpacked(launch, s, size, out_dtype), v_last};
}

}  // namespace snn_core
