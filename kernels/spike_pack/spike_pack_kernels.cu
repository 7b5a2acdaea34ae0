#include "spike_pack/spike_pack_kernels.cuh"

namespace snn_core {

// The 16-bit types differ in the bits of 1 alone, which are an argument.
SpikePackKernel cuda_spike_pack(int64_t bytes, bool wide) {
  if (bytes == 4) return wide ? spike_pack_kernel<Float32, true> : spike_pack_kernel<Float32, false>;
  return wide ? spike_pack_kernel<BFloat16, true> : spike_pack_kernel<BFloat16, false>;
}

SpikePackKernel cuda_spike_unpack(int64_t bytes, bool wide) {
  if (bytes == 4) return wide ? spike_unpack_kernel<Float32, true> : spike_unpack_kernel<Float32, false>;
  return wide ? spike_unpack_kernel<BFloat16, true> : spike_unpack_kernel<BFloat16, false>;
}

}  // namespace snn_core
