// Output tensors of the operators: their layouts, and advice to the operating system about their memory.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace snn_core {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kHugePage = 2 << 20;

inline int32_t shim_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::Byte:
      return aoti_torch_dtype_uint8();
    case ScalarType::Char:
      return aoti_torch_dtype_int8();
    case ScalarType::Float8_e4m3fn:
      return aoti_torch_dtype_float8_e4m3fn();
    case ScalarType::Long:
      return aoti_torch_dtype_int64();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    default:
      throw std::runtime_error("snn_core: empty_strided() of a dtype that no operator uses");
  }
}

// On the device of `like`. Through the C shim, which is the shorter way to the allocator than the dispatcher.
inline Tensor empty_strided(const Tensor& like, const std::vector<int64_t>& size, const std::vector<int64_t>& stride,
                            ScalarType dtype) {
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  const auto code = aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride.data(),
                                             shim_dtype(dtype), device_type, like.get_device_index(), &handle);
  if (code != AOTI_TORCH_SUCCESS) {  // the shim keeps the reason to itself
    std::string shape;
    for (const int64_t extent : size) shape += (shape.empty() ? "" : ", ") + std::to_string(extent);
    throw std::runtime_error("snn_core: no memory for a tensor of shape [" + shape + "] (out of memory?)");
  }
  return Tensor(handle);
}

// Whether the elements of a step of the given sizes and strides fill a block of memory, in any order of dimensions.
inline bool is_dense(const std::vector<int64_t>& size, const std::vector<int64_t>& stride) {
  std::vector<size_t> order;
  for (size_t d = 0; d < size.size(); ++d) {
    if (size[d] == 0) return false;
    if (size[d] > 1) order.push_back(d);
  }
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return stride[a] < stride[b]; });
  int64_t expected = 1;
  for (const size_t d : order) {
    if (stride[d] != expected) return false;
    expected *= size[d];
  }
  return true;
}

// Strides of a dense tensor of the given size whose dimensions lie in memory in the order of `like` (ties: as they
// come). dense_strides() in schema.py is the same.
inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& size, const std::vector<int64_t>& like) {
  std::vector<size_t> order(size.size());
  for (size_t d = 0; d < order.size(); ++d) order[d] = d;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return like[a] > like[b]; });
  std::vector<int64_t> strides(size.size());
  int64_t stride = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    strides[*d] = stride;
    stride *= std::max<int64_t>(1, size[*d]);
  }
  return strides;
}

// Layouts of the outputs, the same as in schema.py: one time step as empty_like(x[0]) lays it, time outermost.
struct Layout {
  std::vector<int64_t> step_size, step_stride;
  int64_t steps = 0;
  int64_t step_numel = 1;

  explicit Layout(const Tensor& x) : steps(x.size(0)) {
    for (int64_t d = 1; d < x.dim(); ++d) {
      step_size.push_back(x.size(d));
      step_stride.push_back(x.stride(d));
      step_numel *= x.size(d);
    }
    // empty_like keeps the strides of a dense tensor. Asking it allocates, so it is asked for the others alone.
    if (is_dense(step_size, step_stride)) return;
    Tensor step = torch::stable::select(x, 0, 0);
    const Tensor like = torch::stable::empty_like(step);
    for (int64_t d = 0; d < like.dim(); ++d) step_stride[d] = like.stride(d);
  }

  // A step with dimension `dim` (of x, so at least 1) shrunk to the bytes that hold its bits.
  Layout packed(int64_t dim) const {
    Layout result(*this);
    result.step_size[dim - 1] = (step_size[dim - 1] + 7) / 8;
    result.step_stride = dense_strides(result.step_size, step_stride);
    result.step_numel = 1;
    for (const int64_t extent : result.step_size) result.step_numel *= extent;
    return result;
  }

  // [count, ...]
  Tensor sequence(const Tensor& like, int64_t count, ScalarType dtype) const {
    std::vector<int64_t> size{count}, stride{step_numel};
    size.insert(size.end(), step_size.begin(), step_size.end());
    stride.insert(stride.end(), step_stride.begin(), step_stride.end());
    return empty_strided(like, size, stride, dtype);
  }
  Tensor sequence(const Tensor& like) const { return sequence(like, steps, like.scalar_type()); }
  Tensor step_float(const Tensor& like) const {
    return empty_strided(like, step_size, step_stride, ScalarType::Float);
  }
  int64_t neurons() const { return step_numel; }
};

inline Tensor empty_vector_like(const Tensor& like, ScalarType dtype) { return empty_strided(like, {0}, {1}, dtype); }

inline Tensor empty_scalar_like(const Tensor& like) { return empty_strided(like, {}, {}, ScalarType::Float); }

// Page faults of a fresh output cost more than the arithmetic; huge pages make them 512 times fewer.
inline void advise_huge_pages(const Tensor& t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const int64_t bytes = t.numel() * static_cast<int64_t>(t.element_size());
  if (bytes < 2 * kHugePage) return;
  const auto start = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t first = (start + kHugePage - 1) & ~static_cast<uintptr_t>(kHugePage - 1);
  const uintptr_t last = (start + bytes) & ~static_cast<uintptr_t>(kHugePage - 1);
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace snn_core
