// Arguments of the CUDA launchers of nm_matmul: checks, and weights as the kernels take them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "native/cuda_launch.h"
#include "native/device_geometry.h"
#include "native/tensors.h"
#include "nm_matmul/nm_cuda.h"

namespace snn_core {

inline void require_nm(bool holds, const char* message) {
  if (!holds) throw std::runtime_error(std::string("nm_matmul: ") + message);
}

inline int cuda_type(ScalarType dtype, const char* name) {
  switch (dtype) {
    case ScalarType::Float:
      return kCudaFloat32;
    case ScalarType::BFloat16:
      return kCudaBFloat16;
    case ScalarType::Half:
      return kCudaFloat16;
    case ScalarType::Char:
      return kCudaInt8;
    case ScalarType::Float8_e4m3fn:
      return kCudaFloat8;
    default:
      throw std::runtime_error(std::string("nm_matmul: ") + name + " has a dtype that is not supported");
  }
}

inline bool same_place(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline Tensor contiguous_empty(const Tensor& like, const std::vector<int64_t>& size, ScalarType dtype) {
  std::vector<int64_t> stride(size.size());
  int64_t next = 1;
  for (size_t d = size.size(); d-- > 0; next *= size[d] > 0 ? size[d] : 1) stride[d] = next;
  return empty_strided(like, size, stride, dtype);
}

inline Tensor scratch_bytes(const Tensor& like, int64_t bytes) {
  return contiguous_empty(like, {bytes}, ScalarType::Byte);
}

// Bits of a position in a block of m.
inline int index_bits(int64_t m) {
  int bits = 0;
  while ((int64_t{1} << bits) < m) ++bits;
  return bits;
}

// A weight as the operators take it, checked.
struct NMWeightArguments {
  const void* values = nullptr;
  const uint8_t* indices = nullptr;  // null: dense
  int64_t index_bytes = 0;
  int n = 0, m = 0, bits = 0, type = 0;
  int64_t outputs = 0, channels = 0, kernel_height = 0, kernel_width = 0, k = 0;
  const float* scale = nullptr;
  const float* bias = nullptr;

  NMWeightArguments(const Tensor& input, const Tensor& values, const std::optional<Tensor>& indices, int64_t n,
                    int64_t m, const std::vector<int64_t>& shape, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& bias)
      : values(values.data_ptr()), n(static_cast<int>(n)), m(static_cast<int>(m)),
        type(cuda_type(values.scalar_type(), "values")) {
    require_nm(shape.size() == 4, "weight_shape must have four entries");
    for (const int64_t extent : shape) require_nm(extent >= 0, "weight_shape is negative");
    outputs = shape[0], channels = shape[1], kernel_height = shape[2], kernel_width = shape[3];
    k = channels * kernel_height * kernel_width;
    require_nm(outputs < INT32_MAX && k < INT32_MAX / 2, "weight_shape is too large");
    require_nm(values.is_contiguous() && same_place(values, input), "values must be contiguous, on the input's device");
    if (indices.has_value()) {
      require_nm(m >= 2 && m <= 256 && n >= 1 && n <= m, "n and m must be a pattern with m from 2 to 256");
      require_nm(channels % m == 0, "channels of weight_shape must be a multiple of m");
      bits = index_bits(m);
      require_nm(values.numel() == outputs * k / m * n, "values must hold n elements for each block of weight_shape");
      index_bytes = (values.numel() * bits + 7) / 8;
      require_nm(indices->scalar_type() == ScalarType::Byte && indices->is_contiguous() &&
                     indices->numel() == index_bytes && same_place(*indices, input),
                 "indices must be uint8, contiguous, on the input's device, of the size that values ask for");
      this->indices = static_cast<const uint8_t*>(indices->data_ptr());
    } else {
      require_nm(n == 0 && m == 0, "n and m must be 0 without indices");
      require_nm(values.numel() == outputs * k, "values must hold the dense weight of weight_shape");
    }
    this->scale = per_output(input, scale, "scale must be float32 [outputs], contiguous, on the input's device");
    this->bias = per_output(input, bias, "bias must be float32 [outputs], contiguous, on the input's device");
  }

  // Whether no four columns keep more than two, so that the sparse tensor cores take it.
  bool fits_two_of_four() const {
    return indices != nullptr && ((n <= 2 && m % 4 == 0) || (n == 1 && m == 2));
  }

 private:
  const float* per_output(const Tensor& input, const std::optional<Tensor>& t, const char* message) const {
    if (!t.has_value()) return nullptr;
    require_nm(t->scalar_type() == ScalarType::Float && t->numel() == outputs && t->is_contiguous() &&
                   same_place(*t, input),
               message);
    return static_cast<const float*>(t->data_ptr());
  }
};

// How a type of weight is multiplied: as `type`, in so many parts that add up to it. planes 0: it cannot be.
struct MmaForm {
  int type = 0, planes = 0;
};

// 8-bit elements and bfloat16 are exact in the wider types; float32 is three bfloat16, float16 two.
inline MmaForm mma_form(int type, int x_type) {
  if (x_type == kCudaBFloat16) return {kCudaBFloat16, type == kCudaFloat32 ? 3 : type == kCudaFloat16 ? 2 : 1};
  if (x_type == kCudaFloat16 && type != kCudaFloat32 && type != kCudaBFloat16) return {kCudaFloat16, 1};
  return {};
}
// Hopper has products of e4m3 too; elsewhere such weights are widened.
inline MmaForm mma_form_of_spikes(int type, bool warpgroup) {
  if (type == kCudaInt8 || type == kCudaFloat16 || (warpgroup && type == kCudaFloat8)) return {type, 1};
  return mma_form(type, kCudaBFloat16);
}

// Part of a weight in the order of the tensor cores: as it lies where that is the order, else a copy.
struct PreparedWeight {
  const unsigned char* values = nullptr;
  const uint8_t* indices = nullptr;
  int64_t value_stride = 0, index_stride = 0;  // bytes of a row
  int64_t outputs = 0, k_padded = 0;
  MmaForm form;
  bool sparse = false;
  std::optional<Tensor> copy;

  PreparedWeight(const Launcher& launch, const Tensor& like, const NMWeightArguments& w, MmaForm form, int64_t first,
                 int64_t outputs)
      : outputs(outputs), form(form), sparse(w.fits_two_of_four()) {
    const int tile = gemm_tile_k(form.type), bytes = kCudaTypeBytes[form.type];
    k_padded = (w.k + tile - 1) / tile * tile;
    const int64_t plane = (sparse ? k_padded / 2 : k_padded) * bytes;
    value_stride = plane * form.planes;
    index_stride = sparse ? k_padded / 8 : 0;
    const bool native = w.indices == nullptr || (w.n == 2 && w.m == 4);
    if (native && form.type == w.type && form.planes == 1 && k_padded == w.k && aligned16(w.values) &&
        aligned16(w.indices)) {
      values = static_cast<const unsigned char*>(w.values) + first * value_stride;
      if (sparse) indices = w.indices + first * index_stride;
      return;
    }
    copy = scratch_bytes(like, outputs * (value_stride + index_stride));  // values first: they keep its alignment
    auto* const target = static_cast<unsigned char*>(copy->data_ptr());
    PrepareArguments a{};
    a.values = w.values, a.indices = w.indices, a.index_bytes = w.index_bytes;
    a.first_output = first, a.outputs = outputs, a.k = w.k, a.k_padded = k_padded;
    a.n = w.n, a.m = w.m, a.bits = w.bits;
    a.type = w.type, a.target_type = form.type, a.planes = form.planes, a.sparse = sparse;
    a.prepared = target;
    a.prepared_indices = target + outputs * value_stride;
    launch(cuda_nm_prepare(), blocks_for(outputs * k_padded / 8, kConvertThreads), kConvertThreads, a);
    values = target;
    if (sparse) indices = a.prepared_indices;
  }
};

}  // namespace snn_core
