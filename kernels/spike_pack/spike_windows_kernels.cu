#include "spike_pack/spike_windows_kernels.cuh"

namespace snn_core {

SpikeWindowsKernel cuda_spike_im2col(int bytes) {
  if (bytes == 16) return spike_im2col_kernel<4>;
  return bytes == 4 ? spike_im2col_kernel<1> : spike_im2col_kernel<0>;
}

SpikeWindowsKernel cuda_spike_max_pool(int bytes) {
  if (bytes == 16) return spike_max_pool_kernel<4>;
  return bytes == 4 ? spike_max_pool_kernel<1> : spike_max_pool_kernel<0>;
}

}  // namespace snn_core
