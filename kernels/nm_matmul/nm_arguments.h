// The weight of an operator: checks of its tensors, and what the kernels take.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "native/row_tools.h"
#include "native/tensors.h"
#include "nm_matmul/nm_rows.h"

namespace snn_core {

using MaybeTensor = std::optional<Tensor>;

inline void require_nm(bool fits, const std::string& message) {
  if (!fits) throw std::runtime_error("nm_matmul: " + message);
}

inline int nm_type(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return kNMFloat32;
    case ScalarType::BFloat16: return kNMBFloat16;
    case ScalarType::Half: return kNMFloat16;
    case ScalarType::Char: return kNMInt8;
    case ScalarType::Float8_e4m3fn: return kNMFloat8;
    default:
      throw std::runtime_error(std::string("nm_matmul: ") + name +
                               " must be float32, bfloat16, float16, int8 or float8_e4m3fn");
  }
}

inline Storage storage_of_dtype(ScalarType dtype, const char* name) {
  switch (dtype) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    default: throw std::runtime_error(std::string("nm_matmul: ") + name + " must be float32, bfloat16 or float16");
  }
}

inline int nm_index_bits(int64_t m) {
  int bits = 0;
  while ((int64_t{1} << bits) < m) ++bits;
  return bits;
}

// float32 [outputs], contiguous; null where it is absent.
inline const float* output_vector(const MaybeTensor& t, int64_t outputs, const char* name) {
  if (!t.has_value()) return nullptr;
  require_nm(t->scalar_type() == ScalarType::Float && t->dim() == 1 && t->size(0) == outputs &&
                 (outputs <= 1 || t->stride(0) == 1),
             std::string(name) + " must be float32 [" + std::to_string(outputs) + "], contiguous");
  return static_cast<const float*>(t->data_ptr());
}

// A weight [outputs, segments * segment], compressed or (without indices) dense.
inline NMWeight make_weight(const Tensor& values, const MaybeTensor& indices, int64_t n, int64_t m, int64_t outputs,
                            int64_t segments, int64_t segment) {
  NMWeight w{};
  w.values = values.data_ptr();
  w.type = nm_type(values, "values");
  w.outputs = outputs, w.segments = segments, w.segment = segment;
  require_nm(values.is_contiguous(), "values must be contiguous");
  int64_t k = 0, expected = 0, bits = 0;  // products of hostile sizes must not wrap around
  require_nm(!__builtin_mul_overflow(segments, segment, &k) && !__builtin_mul_overflow(outputs, k, &expected) &&
                 !__builtin_mul_overflow(expected, int64_t{64}, &bits),
             "weight_shape is too large");
  if (indices.has_value()) {
    require_nm(m >= 1 && m <= 256 && n >= 1 && n <= m, "n and m must be 1 <= n <= m <= 256");
    require_nm(segment % m == 0, "m must divide the input channels of weight_shape");
    w.n = static_cast<int>(n), w.m = static_cast<int>(m);
    expected = expected / m * n;
    require_nm(indices->scalar_type() == ScalarType::Byte && indices->dim() == 1 && indices->is_contiguous() &&
                   indices->size(0) == (expected * nm_index_bits(m) + 7) / 8,
               "indices must be uint8 [" + std::to_string((expected * nm_index_bits(m) + 7) / 8) + "], contiguous");
    w.indices = static_cast<const uint8_t*>(indices->data_ptr());
    w.index_bytes = indices->size(0);
  } else {
    require_nm(n == 0 && m == 0, "n and m must be 0 for a weight without indices");
  }
  require_nm(values.numel() == expected, "values must hold " + std::to_string(expected) + " elements for weight_shape");
  return w;
}

}  // namespace snn_core
