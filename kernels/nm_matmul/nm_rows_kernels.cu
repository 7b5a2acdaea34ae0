#include "nm_matmul/nm_rows_kernels.cuh"

namespace snn_core {
namespace {

template <int kType, int kXType>
CudaKernel<RowsArguments> any(int rows) {
  return rows == 1 ? nm_rows_kernel<kType, kXType, 1> : nm_rows_kernel<kType, kXType, 4>;
}

template <int kType>
CudaKernel<RowsArguments> any_x(int x_type, int rows) {
  if (x_type == kCudaFloat32) return any<kType, kCudaFloat32>(rows);
  return x_type == kCudaBFloat16 ? any<kType, kCudaBFloat16>(rows) : any<kType, kCudaFloat16>(rows);
}

template <int kType, int kXType>
CudaKernel<RowsArguments> wide(int rows) {
  if (rows == 1) return nm_rows_wide_kernel<kType, kXType, 1>;
  return rows == 2 ? nm_rows_wide_kernel<kType, kXType, 2> : nm_rows_wide_kernel<kType, kXType, 4>;
}

}  // namespace

CudaKernel<RowsArguments> cuda_nm_rows(int type, int x_type, int rows) {
  switch (type) {
    case kCudaFloat32:
      return any_x<kCudaFloat32>(x_type, rows);
    case kCudaBFloat16:
      return any_x<kCudaBFloat16>(x_type, rows);
    case kCudaFloat16:
      return any_x<kCudaFloat16>(x_type, rows);
    case kCudaInt8:
      return any_x<kCudaInt8>(x_type, rows);
    default:
      return any_x<kCudaFloat8>(x_type, rows);
  }
}

CudaKernel<RowsArguments> cuda_nm_rows_wide(int type, int x_type, int rows) {
  const bool bfloat16 = x_type == kCudaBFloat16;
  if (x_type == kCudaFloat32 || type == kCudaFloat32) return nullptr;
  if (type == kCudaInt8) return bfloat16 ? wide<kCudaInt8, kCudaBFloat16>(rows) : wide<kCudaInt8, kCudaFloat16>(rows);
  if (type == kCudaFloat8) {
    return bfloat16 ? wide<kCudaFloat8, kCudaBFloat16>(rows) : wide<kCudaFloat8, kCudaFloat16>(rows);
  }
  if (type != x_type) return nullptr;
  return bfloat16 ? wide<kCudaBFloat16, kCudaBFloat16>(rows) : wide<kCudaFloat16, kCudaFloat16>(rows);
}

}  // namespace snn_core
