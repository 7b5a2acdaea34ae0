// Tensors as rows of contiguous elements, whatever their dtype and strides are.
#pragma once

#include <algorithm>
#include <cstdint>

#include "native/cpu_features.h"
#include "native/row_tools.h"
#include "native/strided.h"
#include "native/tensors.h"

namespace snn_core {

inline const RowTools& row_tools() { SNN_PICK(row_tools) }

inline Storage storage_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::BFloat16:
      return kBFloat16;
    case ScalarType::Half:
      return kFloat16;
    default:
      return kFloat32;
  }
}

inline int64_t storage_bytes(Storage storage) { return storage == kFloat32 ? 4 : 2; }

// One tensor of an operator: [T, ...] or, with time_stride 0, [...]. Strides in elements.
struct Operand {
  char* data = nullptr;
  Storage storage = kFloat32;
  int64_t time_stride = 0;

  explicit operator bool() const { return data != nullptr; }
};

inline Operand sequence_operand(const Tensor& t) {
  return {static_cast<char*>(t.data_ptr()), storage_of(t), t.stride(0)};
}
inline Operand state_operand(const Tensor& t) { return {static_cast<char*>(t.data_ptr()), storage_of(t), 0}; }

// A run of elements of an operand: in place where it is contiguous, else gathered into and scattered from float32.
struct RowView {
  Operand operand;
  int64_t offset = 0;  // of the run at t = 0
  int64_t stride = 1;  // between neighbours

  bool contiguous() const { return stride == 1; }
  bool direct() const { return stride == 1 && operand.storage == kFloat32; }
  char* at(int64_t t) const {
    return operand.data + (offset + t * operand.time_stride) * storage_bytes(operand.storage);
  }

  const float* read(int64_t t, float* buffer, int64_t n) const {
    if (direct()) return reinterpret_cast<const float*>(at(t));
    if (contiguous()) {
      row_tools().to_float[operand.storage](at(t), buffer, n);
    } else if (operand.storage == kFloat32) {
      const float* source = reinterpret_cast<const float*>(at(t));
      for (int64_t i = 0; i < n; ++i) buffer[i] = source[i * stride];
    } else {
      const uint16_t* source = reinterpret_cast<const uint16_t*>(at(t));
      gather_bits(source, buffer, n);
    }
    return buffer;
  }

  float* target(int64_t t, float* buffer) const { return direct() ? reinterpret_cast<float*>(at(t)) : buffer; }

  // Writes back what target() gave, where that was the buffer.
  void write(int64_t t, const float* buffer, int64_t n) const {
    if (direct()) return;
    if (contiguous()) {
      row_tools().from_float[operand.storage](buffer, at(t), n);
    } else if (operand.storage == kFloat32) {
      float* place = reinterpret_cast<float*>(at(t));
      for (int64_t i = 0; i < n; ++i) place[i * stride] = buffer[i];
    } else {
      scatter_bits(buffer, reinterpret_cast<uint16_t*>(at(t)), n);
    }
  }

  // Whether all rows start at a multiple of the widest vector, as streamed stores need.
  bool aligned() const {
    const int64_t step = operand.time_stride * storage_bytes(operand.storage);
    return contiguous() && reinterpret_cast<uintptr_t>(at(0)) % 64 == 0 && step % 64 == 0;
  }

 private:
  static constexpr int64_t kBatch = 64;

  void gather_bits(const uint16_t* source, float* buffer, int64_t n) const {
    uint16_t some[kBatch];
    for (int64_t first = 0; first < n; first += kBatch) {
      const int64_t count = std::min(kBatch, n - first);
      for (int64_t i = 0; i < count; ++i) some[i] = source[(first + i) * stride];
      row_tools().to_float[operand.storage](some, buffer + first, count);
    }
  }

  void scatter_bits(const float* buffer, uint16_t* place, int64_t n) const {
    uint16_t some[kBatch];
    for (int64_t first = 0; first < n; first += kBatch) {
      const int64_t count = std::min(kBatch, n - first);
      row_tools().from_float[operand.storage](buffer + first, some, count);
      for (int64_t i = 0; i < count; ++i) place[(first + i) * stride] = some[i];
    }
  }
};

}  // namespace snn_core
