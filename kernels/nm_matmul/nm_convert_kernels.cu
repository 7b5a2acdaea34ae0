#include "nm_matmul/nm_convert_kernels.cuh"

namespace snn_core {

CudaKernel<DecompressArguments> cuda_nm_decompress(bool by_four) {
  return by_four ? nm_decompress_kernel<4> : nm_decompress_kernel<1>;
}
CudaKernel<CompressArguments> cuda_nm_compress(int element_bytes) {
  if (element_bytes == 4) return nm_compress_kernel<uint32_t>;
  return element_bytes == 2 ? nm_compress_kernel<uint16_t> : nm_compress_kernel<uint8_t>;
}
CudaKernel<CompressArguments> cuda_nm_no_violations() { return nm_no_violations_kernel; }
CudaKernel<PrepareArguments> cuda_nm_prepare() { return nm_prepare_kernel; }
CudaKernel<PadArguments> cuda_nm_pad() { return nm_pad_kernel; }
CudaKernel<GatherArguments> cuda_nm_gather() { return nm_gather_kernel; }
CudaKernel<ReduceArguments> cuda_nm_reduce() { return nm_reduce_kernel; }

}  // namespace snn_core
