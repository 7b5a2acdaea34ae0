// Tensors of the LIF operator as rows of contiguous float32, whatever their dtype and strides are.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <stdexcept>

#include "lif/lif_rows.h"
#include "native/cpu_features.h"
#include "native/strided.h"
#include "native/tensors.h"

namespace snn_core {

// The row kernels of the instruction set in use.
inline const LifRows& rows() {
  static const LifRows& table = []() -> const LifRows& {
    switch (active_isa()) {
#if defined(SNN_HAS_AVX512)
      case Isa::kAvx512:
        return lif_rows_avx512;
#endif
#if defined(SNN_HAS_AVX2)
      case Isa::kAvx2:
        return lif_rows_avx2;
#endif
      default:
        return lif_rows_baseline;
    }
  }();
  return table;
}

// One tensor of the operator: [T, ...] or, with time_stride 0, [...].
struct Operand {
  char* data = nullptr;
  bool bf16 = false;
  int64_t time_stride = 0;

  explicit operator bool() const { return data != nullptr; }
};

inline Operand sequence_operand(const Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), t.scalar_type() == ScalarType::BFloat16, t.stride(0)};
}
inline Operand step_operand(const Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), t.scalar_type() == ScalarType::BFloat16, 0};
}

// A run of elements of an operand as contiguous float32: in place where it is that already, else through `buffer`.
struct RowView {
  Operand operand;
  int64_t offset = 0;  // of the block, in elements
  int64_t stride = 1;  // between neighbours

  bool direct() const { return !operand.bf16 && stride == 1; }
  int64_t at(int64_t t) const { return offset + t * operand.time_stride; }
  float* pointer(int64_t t) const { return reinterpret_cast<float*>(operand.data) + at(t); }

  const float* read(int64_t t, float* buffer, int64_t n) const {
    if (direct()) return pointer(t);
    if (operand.bf16) {
      const uint16_t* source = reinterpret_cast<const uint16_t*>(operand.data) + at(t);
      if (stride == 1) {
        rows().bf16_to_float(source, buffer, n);
      } else {
        for (int64_t i = 0; i < n; ++i) buffer[i] = std::bit_cast<float>(uint32_t{source[i * stride]} << 16);
      }
    } else {
      const float* source = pointer(t);
      for (int64_t i = 0; i < n; ++i) buffer[i] = source[i * stride];
    }
    return buffer;
  }

  float* target(int64_t t, float* buffer) const { return direct() ? pointer(t) : buffer; }

  // Writes back what target() gave, where that was the buffer. May use the start of `buffer` as scratch.
  void write(int64_t t, float* buffer, int64_t n) const {
    if (direct()) return;
    if (operand.bf16) {
      uint16_t* place = reinterpret_cast<uint16_t*>(operand.data) + at(t);
      if (stride == 1) {
        rows().float_to_bf16(buffer, place, n);
      } else {
        uint16_t one;
        for (int64_t i = 0; i < n; ++i) {
          rows().float_to_bf16(buffer + i, &one, 1);
          place[i * stride] = one;
        }
      }
    } else {
      float* place = pointer(t);
      for (int64_t i = 0; i < n; ++i) place[i * stride] = buffer[i];
    }
  }

  // The next row to prefetch, null where rows are copied anyway.
  const float* ahead(int64_t t, int64_t steps) const {
    return direct() && t >= 0 && t < steps && operand.time_stride != 0 ? pointer(t) : nullptr;
  }
};

// Strides of `t` for the slab dimensions of x ([T, ...] tensors skip the time dimension).
template <int K>
Geometry<K> make_geometry(const Tensor& x, const std::array<const Tensor*, K>& operands) {
  if (x.dim() - 1 > kMaxDims) throw std::runtime_error("lif: more than 24 dimensions");
  if (x.scalar_type() != ScalarType::Float && x.scalar_type() != ScalarType::BFloat16) {
    throw std::runtime_error("lif: x_seq must be float32 or bfloat16");
  }
  for (const Tensor* t : operands) {
    // A sequence has the time and the dtype of x; a state has no time and is float32.
    bool fits = t == nullptr || (t->dim() == x.dim() && t->size(0) == x.size(0) && t->scalar_type() == x.scalar_type()) ||
                (t->dim() == x.dim() - 1 && t->scalar_type() == ScalarType::Float);
    for (int64_t d = 1; t != nullptr && fits && d < x.dim(); ++d) {
      fits = t->size(t->dim() == x.dim() ? d : d - 1) == x.size(d);
    }
    if (!fits) throw std::runtime_error("lif: a state or gradient has another shape or dtype than x_seq asks for");
  }
  Geometry<K> geometry;
  for (int64_t d = 1; d < x.dim(); ++d) {
    std::array<int64_t, K> strides{};
    for (int k = 0; k < K; ++k) {
      if (operands[k] == nullptr) continue;
      strides[k] = operands[k]->stride(operands[k]->dim() == x.dim() ? d : d - 1);
    }
    geometry.add_dimension(x.size(d), strides);
  }
  // An absent operand must not stand in the way of merging: it takes the strides of the first.
  for (int k = 0; k < K; ++k) {
    if (operands[k] == nullptr) geometry.stride[k] = geometry.stride[0];
  }
  geometry.coalesce();
  return geometry;
}

}  // namespace snn_core
