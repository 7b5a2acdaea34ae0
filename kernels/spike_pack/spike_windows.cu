// spike_im2col and spike_max_pool on CUDA: launchers and registration, host code alone. Device text:
// spike_windows_kernels.cuh.

#include "spike_pack/spike_windows_cuda.h"

#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "native/cuda_launch.h"
#include "native/device_geometry.h"
#include "native/tensors.h"

namespace snn_core {
namespace {

void require_windows(bool holds, const char* name, const char* message) {
  if (!holds) throw std::runtime_error(std::string(name) + ": " + message);
}

// All but what is written. Bytes are the units until widen().
SpikeWindowsArguments arguments_of(const char* name, const Tensor& bits, const std::vector<int64_t>& kernel,
                                   const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                   const std::vector<int64_t>& dilation) {
  require_windows(bits.scalar_type() == ScalarType::Byte && bits.dim() == 4, name,
                  "bits must be uint8 [B, H, W, bytes]");
  require_windows(bits.size(3) <= 1 || bits.stride(3) == 1, name, "bits must have stride 1 in the last dimension");
  int64_t out[2];
  for (int d = 0; d < 2; ++d) {
    require_windows(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, name,
                    "kernel, stride, padding and dilation must have two entries");
    require_windows(kernel[d] >= 1 && stride[d] >= 1 && dilation[d] >= 1 && padding[d] >= 0, name,
                    "kernel, stride and dilation must be positive, padding must not be negative");
    require_windows(bits.size(1 + d) < INT32_MAX / 4 && padding[d] < INT32_MAX / 4 && stride[d] < INT32_MAX / 4 &&
                        kernel[d] < 32768 && dilation[d] < 32768,
                    name, "bits, kernel, stride, padding or dilation is too large");
    const int64_t room = bits.size(1 + d) + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1;
    require_windows(room >= 0, name, "kernel is larger than the padded image of bits");
    out[d] = room / stride[d] + 1;
  }
  SpikeWindowsArguments a{};
  a.bits = bits.data_ptr();
  a.batch_stride = bits.stride(0), a.row_stride = bits.stride(1), a.column_stride = bits.stride(2);
  a.batch = bits.size(0);
  a.units = static_cast<int>(bits.size(3));
  a.height = static_cast<int>(bits.size(1)), a.width = static_cast<int>(bits.size(2));
  a.kernel_height = static_cast<int>(kernel[0]), a.kernel_width = static_cast<int>(kernel[1]);
  a.stride_y = static_cast<int>(stride[0]), a.stride_x = static_cast<int>(stride[1]);
  a.pad_y = static_cast<int>(padding[0]), a.pad_x = static_cast<int>(padding[1]);
  a.step_y = static_cast<int>(dilation[0]), a.step_x = static_cast<int>(dilation[1]);
  a.out_height = static_cast<int>(out[0]), a.out_width = static_cast<int>(out[1]);
  a.last_mask = 0xffu;
  return a;
}

// The widest unit that everything is a multiple of, in bytes; the arguments count it from here on.
int widen(SpikeWindowsArguments& a) {
  if (a.last_mask != 0xffu) return 1;
  for (const int bytes : {16, 4}) {
    const int64_t all = a.units | a.batch_stride | a.row_stride | a.column_stride |
                        static_cast<int64_t>(reinterpret_cast<uintptr_t>(a.bits)) |
                        static_cast<int64_t>(reinterpret_cast<uintptr_t>(a.out));
    if (all % bytes != 0) continue;
    a.units /= bytes;
    a.batch_stride /= bytes, a.row_stride /= bytes, a.column_stride /= bytes;
    return bytes;
  }
  return 1;
}

Tensor spike_im2col(Tensor bits, int64_t channels, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                    std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  SpikeWindowsArguments a = arguments_of("spike_im2col", bits, kernel, stride, padding, dilation);
  require_windows(channels >= 0 && bits.size(3) == (channels + 7) / 8, "spike_im2col",
                  "bits must hold ceil(channels / 8) bytes a pixel");
  const Launcher launch(bits.get_device_index());
  const int64_t windows = a.batch * a.out_height * a.out_width, bytes = kernel[0] * kernel[1] * a.units;
  Tensor out = empty_strided(bits, {windows, bytes}, {bytes > 0 ? bytes : 1, 1}, ScalarType::Byte);
  if (out.numel() == 0) return out;
  a.out = out.data_ptr();
  if (channels % 8 != 0) a.last_mask = (1u << channels % 8) - 1;
  const int unit = widen(a);
  launch(cuda_spike_im2col(unit), blocks_for(out.numel() / unit, kSpikeWindowsThreads), kSpikeWindowsThreads, a);
  return out;
}

Tensor spike_max_pool(Tensor bits, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                      std::vector<int64_t> padding) {
  SpikeWindowsArguments a = arguments_of("spike_max_pool", bits, kernel, stride, padding, {1, 1});
  const Launcher launch(bits.get_device_index());
  const int64_t pixel = a.units, row = pixel * a.out_width, image = row * a.out_height;
  Tensor out = empty_strided(bits, {a.batch, a.out_height, a.out_width, pixel},
                             {image > 0 ? image : 1, row > 0 ? row : 1, pixel > 0 ? pixel : 1, 1}, ScalarType::Byte);
  if (out.numel() == 0) return out;
  a.out = out.data_ptr();
  const int unit = widen(a);
  launch(cuda_spike_max_pool(unit), blocks_for(out.numel() / unit, kSpikeWindowsThreads), kSpikeWindowsThreads, a);
  return out;
}

}  // namespace

#if defined(SNN_EMULATED)
STABLE_TORCH_LIBRARY_FRAGMENT(snn_core_emulated, m) {
  m.def("spike_im2col(Tensor bits, int channels, int[] kernel, int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def("spike_max_pool(Tensor bits, int[] kernel, int[] stride, int[] padding) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(snn_core_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(snn_core, CUDA, m) {
#endif
  m.impl("spike_im2col", TORCH_BOX(&spike_im2col));
  m.impl("spike_max_pool", TORCH_BOX(&spike_max_pool));
}

}  // namespace snn_core
