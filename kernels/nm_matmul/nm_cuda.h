// What the launchers (nm_matmul.cu, host code) and the kernels of nm_matmul share: arguments and tables of kernels.
// Kernels are compiled without torch's headers.
#pragma once

#include <cstdint>

namespace snn_core {

enum CudaType : int { kCudaFloat32, kCudaBFloat16, kCudaFloat16, kCudaInt8, kCudaFloat8, kCudaTypes };  // Float8: e4m3fn
constexpr int kCudaTypeBytes[kCudaTypes] = {4, 2, 2, 1, 1};

template <class Arguments>
using CudaKernel = void (*)(Arguments);

// ---- Conversions: nm_convert_kernels.cuh. A thread does a few elements; no thread needs another.

constexpr int kConvertThreads = 256;

struct DecompressArguments {
  const void* values;      // [blocks, n]
  const uint8_t* indices;  // positions, `bits` each
  int64_t index_bytes;
  const float* scale;      // [rows] or null
  void* dense;             // [rows, k]
  int64_t rows, k;
  int n, m, bits;
  int type, out_type;      // CudaType; equal and without a scale: copied bit by bit
};
CudaKernel<DecompressArguments> cuda_nm_decompress(bool by_four);  // by_four: m is a multiple of 4

struct CompressArguments {
  const void* dense;    // [blocks, m]
  const uint8_t* mask;  // bool [blocks, m] or null
  int64_t blocks;
  int n, m, bits;
  uint32_t magnitude;   // of an element, without its sign
  uint32_t sign;
  void* values;
  uint8_t* indices;
  unsigned long long* violations;
};
CudaKernel<CompressArguments> cuda_nm_compress(int element_bytes);
CudaKernel<CompressArguments> cuda_nm_no_violations();  // sets the count to 0

// A weight as the tensor-core kernels read it: values [outputs, planes, k_padded (/ 2)] in a type of theirs, and with
// `sparse` 2:4 indices [outputs, k_padded / 8]. The planes of a value add up to it exactly, the smallest first.
struct PrepareArguments {
  const void* values;
  const uint8_t* indices;  // null: dense [outputs, k]
  int64_t index_bytes;
  int64_t first_output, outputs, k, k_padded;
  int n, m, bits;
  int type, target_type, planes;
  bool sparse;             // no four columns hold more than two
  void* prepared;
  uint8_t* prepared_indices;
};
CudaKernel<PrepareArguments> cuda_nm_prepare();

// Rows of a dense matrix, filled up with zeros.
struct PadArguments {
  const void* source;
  void* target;
  int64_t rows, bytes, target_bytes;  // of a row; multiples of 2
};
CudaKernel<PadArguments> cuda_nm_pad();

// Windows of a channels-last image of spikes.
struct Windows {
  const uint8_t* bits;  // [batch, height, width, ceil(channels / 8)]
  int64_t batch_stride, row_stride, column_stride;
  int64_t batch;
  int channels, height, width, kernel_height, kernel_width, stride_y, stride_x, pad_y, pad_x, step_y, step_x;
  int out_height, out_width;
};

// Spikes as the tensor-core kernels read them: one row a window, `words` words of 32 spikes of the channels from
// first_channel on, window position by window position without gaps, zeros at the end; bits of a word in `order`.
enum SpikeOrder : int { kPlain, kHalves, kBytes };
struct GatherArguments {
  Windows windows;
  int first_channel, channels;  // of a group; bytes begin with it
  int words;
  int order;
  uint32_t* gathered;
};
CudaKernel<GatherArguments> cuda_nm_gather();

// Adds the partial sums of the pieces that K was cut into.
struct ReduceArguments {
  const float* partial;  // [splits, rows, outputs]
  int splits, outputs;
  int64_t rows;
  float factor;
  const float* scale;
  const float* bias;
  void* out;
  int64_t out_stride;
  int out_type;
};
CudaKernel<ReduceArguments> cuda_nm_reduce();

// ---- Few rows: nm_rows_kernels.cuh. Threads of a warp share an output.

constexpr int kRowsThreads = 256;

struct RowsArguments {
  const void* values;
  const uint8_t* indices;
  int64_t index_bytes;
  const void* x;  // [rows, k]
  int64_t rows, outputs, k;
  int n, m, bits;
  const float* scale;
  const float* bias;
  void* out;  // [rows, outputs], of the type of x
};
// Any pattern and any types; kernels for up to 4 rows at a time.
CudaKernel<RowsArguments> cuda_nm_rows(int type, int x_type, int rows);
// 2:4 and 16-bit x: the weight is read once, in wide accesses. Null where there is none for these types.
CudaKernel<RowsArguments> cuda_nm_rows_wide(int type, int x_type, int rows);

// ---- Tensor cores: nm_gemm_kernels.cuh.

struct GemmArguments {
  const unsigned char* values;  // a row: planes of k_tiles tiles
  const uint8_t* indices;       // a row: k_tiles tiles; null for a dense weight
  const unsigned char* input;   // rows of x, or of gathered spikes: k_tiles tiles
  int64_t value_stride, index_stride, input_stride;  // bytes between rows
  int outputs, planes, k_tiles, splits;
  int64_t rows;
  float factor;  // of the sums
  const float* scale;
  const float* bias;
  void* out;  // [rows, outputs] every out_stride, or with splits > 1 float32 partial sums [splits, rows, outputs]
  int64_t out_stride;
  int out_type;
};
struct GemmKernel {
  CudaKernel<GemmArguments> kernel;
  int tile_outputs, tile_rows, threads, shared_bytes;
};
// Columns of a tile of K: 128 bytes of dense input.
constexpr int gemm_tile_k(int type) { return kCudaTypeBytes[type] == 1 ? 128 : 64; }

// By the type of the prepared weight. `spikes`: gathered spikes instead of x, as 8-bit weights always have. `rows`: of
// the whole product; they pick the size of a tile.
GemmKernel cuda_gemm_bfloat16(bool sparse, bool spikes, int64_t rows);
GemmKernel cuda_gemm_float16(bool sparse, bool spikes, int64_t rows);
GemmKernel cuda_gemm_int8(bool sparse, bool spikes, int64_t rows);

// By wgmma.sp, of 2:4 weights (nm_warpgroup_kernels.cuh): runs on compute capability 9.0 alone.
GemmKernel cuda_warpgroup(int type, bool spikes);

}  // namespace snn_core
