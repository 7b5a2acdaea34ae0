// Spikes to bits and back on the CPU.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <vector>

#include "native/row_view.h"
#include "native/strided.h"
#include "native/tensors.h"
#include "spike_pack/spike_check.h"

namespace snn_core {
namespace {

constexpr int64_t kRun = 4096;  // spikes worked on at once

// Operand 0 counts spikes, operand 1 bits; the packed dimension is the inner one (see packed_geometry in lif.cpp).
Geometry<2> geometry_of(const Tensor& spikes, const Tensor& packed, int64_t dim) {
  Geometry<2> geometry;
  for (int64_t d = 0; d < spikes.dim(); ++d) {
    if (d != dim) geometry.add_dimension(spikes.size(d), {spikes.stride(d), 8 * packed.stride(d)});
  }
  geometry.coalesce();
  geometry.size[geometry.dims] = spikes.size(dim);
  geometry.stride[0][geometry.dims] = spikes.stride(dim);
  geometry.stride[1][geometry.dims] = packed.stride(dim);
  ++geometry.dims;
  if (spikes.size(dim) % 8 == 0) geometry.merge();
  return geometry;
}

void check(const Tensor& t, int64_t dim) {
  if (dim < 0 || dim >= t.dim()) throw std::runtime_error("spike_pack: dim is not a dimension of the tensor");
  if (t.dim() > kMaxDims) throw std::runtime_error("spike_pack: more than 24 dimensions");
}

// Calls run(view of spikes, bytes, stride of bytes, n) for every run of up to kRun spikes.
template <class Run>
void for_each_run(const Tensor& spikes, const Tensor& packed, int64_t dim, Run run) {
  const auto geometry = geometry_of(spikes, packed, dim);
  const Operand operand = state_operand(spikes);
  auto* const bytes = static_cast<uint8_t*>(packed.data_ptr());
  const int64_t runs_per_row = (geometry.inner_size() + kRun - 1) / kRun;
  const int64_t count = geometry.outer_count() * runs_per_row;
  const int64_t grain = std::max<int64_t>(1, 65536 / std::min(kRun, geometry.inner_size()));
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const auto outer = geometry.outer_offset(index / runs_per_row);
      const int64_t start = index % runs_per_row * kRun;
      const int64_t stride = geometry.inner_stride(0), byte_stride = geometry.inner_stride(1);
      const RowView view{operand, outer[0] + start * stride, stride};
      const int64_t n = std::min(kRun, geometry.inner_size() - start);
      run(view, bytes + (outer[1] + start * byte_stride) / 8, byte_stride, n);
    }
  });
}

// A dense tensor with another size along `dim`, its dimensions in memory in the order of those of `like`.
Tensor resized_like(const Tensor& like, int64_t size, int64_t dim, ScalarType dtype) {
  std::vector<int64_t> sizes, order;
  for (int64_t d = 0; d < like.dim(); ++d) {
    sizes.push_back(d == dim ? size : like.size(d));
    order.push_back(like.stride(d));
  }
  return empty_strided(like, sizes, dense_strides(sizes, order), dtype);
}

Tensor spike_pack(Tensor s, int64_t dim) {
  check(s, dim);
  if (s.scalar_type() != ScalarType::Float && s.scalar_type() != ScalarType::BFloat16 &&
      s.scalar_type() != ScalarType::Half) {
    throw std::runtime_error("spike_pack: s must be float32, bfloat16 or float16");
  }
  Tensor packed = resized_like(s, (s.size(dim) + 7) / 8, dim, ScalarType::Byte);
  if (s.numel() == 0) return packed;
  for_each_run(s, packed, dim, [](const RowView& view, uint8_t* out, int64_t byte_stride, int64_t n) {
    const Storage storage = view.operand.storage;
    uint8_t byte_row[kRun / 8];
    float row[kRun];
    uint8_t* const target = byte_stride == 1 ? out : byte_row;
    if (view.contiguous()) {
      row_tools().pack[storage](view.at(0), target, n);
    } else {
      row_tools().pack[kFloat32](view.read(0, row, n), target, n);
    }
    if (byte_stride != 1) {
      for (int64_t i = 0; i < (n + 7) / 8; ++i) out[i * byte_stride] = byte_row[i];
    }
  });
  return packed;
}

Tensor spike_unpack(Tensor packed, int64_t size, int64_t dim, ScalarType dtype) {
  check(packed, dim);
  if (packed.scalar_type() != ScalarType::Byte) throw std::runtime_error("spike_unpack: packed must be uint8");
  if (size < 0 || packed.size(dim) != (size + 7) / 8) {
    throw std::runtime_error("spike_unpack: size does not fit packed");
  }
  if (dtype != ScalarType::Float && dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) {
    throw std::runtime_error("spike_unpack: dtype must be float32, bfloat16 or float16");
  }
  Tensor s = resized_like(packed, size, dim, dtype);
  if (s.numel() == 0) return s;
  advise_huge_pages(s);
  for_each_run(s, packed, dim, [](const RowView& view, const uint8_t* bytes, int64_t byte_stride, int64_t n) {
    uint8_t byte_row[kRun / 8];
    if (byte_stride != 1) {
      for (int64_t i = 0; i < (n + 7) / 8; ++i) byte_row[i] = bytes[i * byte_stride];
    }
    const uint8_t* const source = byte_stride == 1 ? bytes : byte_row;
    if (view.contiguous()) return row_tools().unpack[view.operand.storage](source, view.at(0), n);
    float row[kRun];
    row_tools().unpack[kFloat32](source, row, n);
    view.write(0, row, n);
  });
  return s;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) {
  m.impl("spike_pack", TORCH_BOX(&spike_pack));
  m.impl("spike_unpack", TORCH_BOX(&spike_unpack));
}

const SpikeCheck& spike_check() { SNN_PICK(spike_check) }

}  // namespace snn_core

// Called from Python on their own: as operators they would cost more than most products of few spikes.
extern "C" __attribute__((visibility("default"))) int64_t snn_core_count_spikes(const uint8_t* bits, int64_t bytes) {
  return snn_core::row_tools().count(bits, bytes);
}

// Whether `n` elements of a storage type (see row_tools.h) are 0, -0 or 1.
extern "C" __attribute__((visibility("default"))) int snn_core_is_binary(const void* source, int64_t n, int storage) {
  return snn_core::spike_check().binary[storage](source, n);
}
