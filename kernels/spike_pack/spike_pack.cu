// spike_pack and spike_unpack on CUDA: launchers and registration, host code alone. Device text:
// spike_pack_kernels.cuh.
// Bytes for each element: its own 2 or 4, and an eighth.

#include "spike_pack/spike_pack_cuda.h"

#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <vector>

#include "native/cuda_launch.h"
#include "native/strided.h"
#include "native/tensors.h"

namespace snn_core {
namespace {

void check_spike_dtype(ScalarType dtype) {
  if (dtype != ScalarType::Float && dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) {
    throw std::runtime_error("spike_pack: spikes must be float32, bfloat16 or float16");
  }
}

void check_dim(const Tensor& t, int64_t dim) {
  if (t.dim() > kMaxDims) throw std::runtime_error("spike_pack: more than 24 dimensions");
  if (dim < 0 || dim >= t.dim()) throw std::runtime_error("spike_pack: dim is not a dimension of the tensor");
}

// Both directions: `spikes` and `packed` differ in the size of dimension `dim` alone.
SpikePackArguments arguments_for(const Tensor& spikes, const Tensor& packed, int64_t dim, bool& wide) {
  using A = SpikePackArguments;
  A a{};
  a.spikes = spikes.data_ptr();
  a.packed = static_cast<uint8_t*>(packed.data_ptr());
  a.size = spikes.size(dim);
  a.lane_stride = spikes.stride(dim);
  const ScalarType dtype = spikes.scalar_type();
  a.one = dtype == ScalarType::Float ? 0x3f800000u : dtype == ScalarType::BFloat16 ? 0x3f80u : 0x3c00u;
  Geometry<A::kCount> geometry;
  wide = a.size % 8 == 0 && a.lane_stride == 1 && aligned16(a.spikes);
  for (int64_t d = 0; d < spikes.dim(); ++d) {
    const int64_t stride = spikes.stride(d) * (d == dim ? 8 : 1);
    wide = wide && (stride % 8 == 0 || packed.size(d) == 1);
    // Where no byte is partly filled nobody asks for the position, and it must not stand in the way of merging.
    geometry.add_dimension(packed.size(d), {stride, packed.stride(d), d == dim && a.size % 8 != 0 ? 8 : 0});
  }
  geometry.coalesce();
  a.geometry = to_device(geometry, 1);
  return a;
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
  check_spike_dtype(s.scalar_type());
  check_dim(s, dim);
  const Launcher launch(s.get_device_index());
  Tensor packed = resized_like(s, (s.size(dim) + 7) / 8, dim, ScalarType::Byte);
  if (packed.numel() == 0) return packed;
  bool wide = false;
  const SpikePackArguments a = arguments_for(s, packed, dim, wide);
  launch(cuda_spike_pack(s.element_size(), wide), blocks_for(a.geometry.groups, kSpikePackThreads),
         kSpikePackThreads, a);
  return packed;
}

Tensor spike_unpack(Tensor packed, int64_t size, int64_t dim, ScalarType dtype) {
  check_spike_dtype(dtype);
  check_dim(packed, dim);
  if (packed.scalar_type() != ScalarType::Byte) throw std::runtime_error("spike_unpack: packed must be uint8");
  if (size < 0 || packed.size(dim) != (size + 7) / 8) {
    throw std::runtime_error("spike_unpack: packed does not hold ceil(size / 8) bytes along dim");
  }
  const Launcher launch(packed.get_device_index());
  Tensor s = resized_like(packed, size, dim, dtype);
  if (s.numel() == 0) return s;
  bool wide = false;
  const SpikePackArguments a = arguments_for(s, packed, dim, wide);
  launch(cuda_spike_unpack(s.element_size(), wide), blocks_for(a.geometry.groups, kSpikePackThreads),
         kSpikePackThreads, a);
  return s;
}

}  // namespace

#if defined(SNN_EMULATED)
STABLE_TORCH_LIBRARY_FRAGMENT(snn_core_emulated, m) {
  m.def("spike_pack(Tensor s, int dim) -> Tensor");
  m.def("spike_unpack(Tensor packed, int size, int dim, ScalarType dtype) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(snn_core_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(snn_core, CUDA, m) {
#endif
  m.impl("spike_pack", TORCH_BOX(&spike_pack));
  m.impl("spike_unpack", TORCH_BOX(&spike_unpack));
}

}  // namespace snn_core
