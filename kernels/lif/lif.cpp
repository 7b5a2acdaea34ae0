// The LIF operator on the CPU: forward, dense, packed and in place.
//
// Work is cut into blocks of neurons; a block runs through all time steps with its state in a small buffer, so every
// element of x is read once and every spike written once.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "lif/blocks.h"
#include "lif/options.h"
#include "native/row_view.h"
#include "native/strided.h"
#include "native/tensors.h"

namespace snn_core {

// In lif_backward.cpp.
std::tuple<Tensor, Tensor, Tensor> lif_backward(OptionalTensor gs, OptionalTensor gv_last, OptionalTensor gv_seq,
                                                Tensor x, OptionalTensor v0, OptionalTensor reciprocal_tau,
                                                OptionalTensor checkpoints, double tau, double v_threshold,
                                                std::optional<double> v_reset, bool decay_input, bool detach_reset,
                                                int64_t surrogate, double alpha, int64_t checkpoint_every);

namespace {

constexpr int64_t kBlock = 2048;  // neurons a block at most: 8 kB of state, a quarter of an L1 cache

ForwardKernel variant_of(const LifForwardTable::Variants& table, const LifVariant& v) {
  return table[v.decay_input][v.divide][v.soft_reset];
}

// What a forward call writes; null or empty where it is not asked for.
struct ForwardOutputs {
  const Tensor* v_last;
  const Tensor* v_seq;
  const Tensor* checkpoints;
  int64_t checkpoint_every;
};

enum { kX, kS, kVSeq, kCheckpoints, kV0, kVLast, kForwardCount };

// One block of the forward.
struct ForwardBlock {
  const Block<kForwardCount>& block;
  const Options& o;
  int64_t steps, checkpoint_every;
  float *v, *x_row, *s_row;  // n each
  bool stream;

  void run() const {
    load_state(block.view[kV0], o.p.v_reset, v, block.n);
    const bool every_step = static_cast<bool>(block.view[kVSeq].operand);
    int64_t t = 0;
    while (t < steps) {
      int64_t until = every_step ? t + 1 : steps;
      if (checkpoint_every > 0) until = std::min(until, (t / checkpoint_every + 1) * checkpoint_every);
      advance(t, until);
      t = until;
      if (every_step) store_state(block.view[kVSeq], t - 1, v, block.n);
      if (checkpoint_every > 0 && t % checkpoint_every == 0 && t < steps) {
        store_state(block.view[kCheckpoints], t / checkpoint_every - 1, v, block.n);
      }
    }
    store_state(block.view[kVLast], 0, v, block.n, stream);
  }

  void advance(int64_t first, int64_t last) const {
    const RowView &x = block.view[kX], &s = block.view[kS];
    if (x.contiguous() && s.contiguous()) {
      const ForwardRows rows{x.at(first), x.operand.time_stride, s.at(first), s.operand.time_stride, v,
                             block.n,     last - first,          stream};
      return variant_of(forward_table().spikes[x.operand.storage], o.variant)(rows, o.p);
    }
    const ForwardKernel kernel = variant_of(forward_table().spikes[kFloat32], o.variant);
    for (int64_t t = first; t < last; ++t) {
      const ForwardRows rows{x.read(t, x_row, block.n), 0, s.target(t, s_row), 0, v, block.n, 1, false};
      kernel(rows, o.p);
      s.write(t, s_row, block.n);
    }
  }
};

// Runs the forward with spikes written to `s`, which may be `x` itself.
void forward(const Tensor& x, const Tensor& s, const OptionalTensor& v0, const Options& o, const ForwardOutputs& out) {
  const auto geometry = neuron_geometry<kForwardCount>(
      x, {&x, &s, out.v_seq, out.checkpoints, v0.has_value() ? &*v0 : nullptr, out.v_last});
  const auto sequence = [](const Tensor* t) { return t != nullptr ? sequence_operand(*t) : Operand{}; };
  const std::array<Operand, kForwardCount> operands{
      sequence_operand(x),           sequence_operand(s), sequence(out.v_seq),
      sequence(out.checkpoints),     v0.has_value() ? state_operand(*v0) : Operand{},
      state_operand(*out.v_last)};
  const int64_t steps = x.size(0);
  const Blocking blocking(geometry, kBlock);
  // In place the lines of x are in the caches already.
  const bool stream = large(s) && s.data_ptr() != x.data_ptr();
  torch::stable::parallel_for(0, blocking.count, blocking.grain(steps), [&](int64_t begin, int64_t end) {
    // Not value-initialised: every part is written before it is read.
    const std::unique_ptr<float[]> scratch(new float[3 * blocking.width]);
    float* const v = scratch.get();
    for (int64_t index = begin; index < end; ++index) {
      const Block<kForwardCount> block(geometry, blocking, operands, index);
      const bool streamed = stream && block.view[kS].aligned();
      // The state lives where it will be read as v_last, unless that goes past the caches.
      float* const state = streamed ? v : block.view[kVLast].target(0, v);
      ForwardBlock{block, o, steps, out.checkpoint_every, state, v + blocking.width, v + 2 * blocking.width, streamed}
          .run();
    }
  });
}

// The value of a learned reciprocal_tau takes the place of that of tau.
Options cpu_options(const Tensor& x, const OptionalTensor& v0, const OptionalTensor& reciprocal_tau, double tau,
                    double v_threshold, std::optional<double> v_reset, bool decay_input, bool detach_reset,
                    int64_t surrogate, double alpha) {
  check_x_seq(x);
  check_state(x, v0.has_value() ? &*v0 : nullptr, "v0");
  Options o = make_options(x, reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha);
  if (reciprocal_tau.has_value()) {
    apply_reciprocal_tau(o.p, decay_input, *static_cast<const float*>(reciprocal_tau->data_ptr()));
  }
  return o;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lif(Tensor x, OptionalTensor v0, OptionalTensor reciprocal_tau, double tau,
                                               double v_threshold, std::optional<double> v_reset, bool decay_input,
                                               bool detach_reset, int64_t surrogate, double alpha,
                                               int64_t checkpoint_every, bool return_v_seq) {
  const Options o = cpu_options(x, v0, reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate,
                                alpha);
  const Layout layout(x);
  const int64_t borders = checkpoint_every > 0 ? (x.size(0) - 1) / checkpoint_every : 0;
  Tensor s = layout.sequence(x), v_last = layout.step_float(x);
  Tensor v_seq = return_v_seq ? layout.sequence(x) : empty_vector_like(x, x.scalar_type());
  Tensor checkpoints = checkpoint_every > 0 ? layout.sequence(x, borders, ScalarType::Float)
                                            : empty_vector_like(x, ScalarType::Float);
  if (layout.neurons() == 0) return {s, v_last, v_seq, checkpoints};
  advise_huge_pages(s);
  if (return_v_seq) advise_huge_pages(v_seq);
  const bool keep = borders > 0;
  forward(x, s, v0, o,
          {&v_last, return_v_seq ? &v_seq : nullptr, keep ? &checkpoints : nullptr, keep ? checkpoint_every : 0});
  return {s, v_last, v_seq, checkpoints};
}

Tensor lif_inplace(Tensor x, OptionalTensor v0, OptionalTensor reciprocal_tau, double tau, double v_threshold,
                   std::optional<double> v_reset, bool decay_input, bool detach_reset, int64_t surrogate,
                   double alpha) {
  const Options o = cpu_options(x, v0, reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate,
                                alpha);
  if (may_overlap(x)) throw std::runtime_error("lif_inplace: elements of x_seq share memory");
  const Layout layout(x);
  Tensor v_last = layout.step_float(x);
  if (layout.neurons() > 0) forward(x, x, v0, o, {&v_last, nullptr, nullptr, 0});
  return v_last;
}

enum { kPackX, kPackV0, kPackVLast, kPackBits, kPackCount };

// Dimensions of a step, the packed one innermost. The strides of the packed operand are in bits: a byte further along
// the packed dimension is 8 elements further, so an element there counts as many bits as that stride has bytes.
Geometry<kPackCount> packed_geometry(const Tensor& x, const OptionalTensor& v0, const Tensor& v_last,
                                     const Tensor& packed, int64_t dim) {
  const auto strides = [&](int64_t d) {
    const int64_t of_v_last = v_last.stride(d - 1);
    return std::array<int64_t, kPackCount>{x.stride(d), v0.has_value() ? v0->stride(d - 1) : of_v_last, of_v_last,
                                           d == dim ? packed.stride(d) : 8 * packed.stride(d)};
  };
  Geometry<kPackCount> geometry;
  for (int64_t d = 1; d < x.dim(); ++d) {
    if (d != dim) geometry.add_dimension(x.size(d), strides(d));
  }
  geometry.coalesce();
  geometry.size[geometry.dims] = x.size(dim);  // also where it is 1: the packed dimension is always the inner one
  for (int k = 0; k < kPackCount; ++k) geometry.stride[k][geometry.dims] = strides(dim)[k];
  ++geometry.dims;
  if (x.size(dim) % 8 == 0) geometry.merge();
  return geometry;
}

// One block of the packed forward: n neurons (a multiple of 8 but for the last of a row), their bits from `bit` on.
struct PackedBlock {
  const Block<kPackCount>& block;
  const Options& o;
  int64_t steps;
  uint8_t* packed;
  int64_t packed_time_stride;
  float *v, *x_row;
  uint8_t* byte_row;

  void run() const {
    const RowView &x = block.view[kPackX], &bits = block.view[kPackBits];
    load_state(block.view[kPackV0], o.p.v_reset, v, block.n);
    uint8_t* const out = packed + bits.offset / 8;
    if (x.contiguous() && bits.stride == 1) {
      const ForwardRows rows{x.at(0), x.operand.time_stride, out, packed_time_stride, v, block.n, steps, false};
      variant_of(forward_table().bits[x.operand.storage], o.variant)(rows, o.p);
    } else {
      const ForwardKernel kernel = variant_of(forward_table().bits[kFloat32], o.variant);
      for (int64_t t = 0; t < steps; ++t) {
        const ForwardRows rows{x.read(t, x_row, block.n), 0, byte_row, 0, v, block.n, 1, false};
        kernel(rows, o.p);
        uint8_t* place = out + t * packed_time_stride;
        for (int64_t i = 0; i < (block.n + 7) / 8; ++i) place[i * bits.stride] = byte_row[i];
      }
    }
    store_state(block.view[kPackVLast], 0, v, block.n);
  }
};

std::tuple<Tensor, Tensor> lif_packed(Tensor x, OptionalTensor v0, OptionalTensor reciprocal_tau, double tau,
                                      double v_threshold, std::optional<double> v_reset, bool decay_input,
                                      bool detach_reset, int64_t surrogate, double alpha, int64_t dim) {
  const Options o = cpu_options(x, v0, reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate,
                                alpha);
  if (dim < 1 || dim >= x.dim()) throw std::runtime_error("lif: dim to pack must be a dimension after the first");
  const Layout layout(x);
  Tensor packed = layout.packed(dim).sequence(x, x.size(0), ScalarType::Byte), v_last = layout.step_float(x);
  if (layout.neurons() == 0) return {packed, v_last};
  const auto geometry = packed_geometry(x, v0, v_last, packed, dim);
  const std::array<Operand, kPackCount> operands{sequence_operand(x), v0.has_value() ? state_operand(*v0) : Operand{},
                                                 state_operand(v_last), Operand{}};
  const int64_t steps = x.size(0);
  const Blocking blocking(geometry, kBlock);  // a run is cut at multiples of 64, so at whole bytes
  auto* const bytes = static_cast<uint8_t*>(packed.data_ptr());
  torch::stable::parallel_for(0, blocking.count, blocking.grain(steps), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(2 * blocking.width);
    std::vector<uint8_t> byte_row(blocking.width / 8 + 1);
    for (int64_t index = begin; index < end; ++index) {
      const Block<kPackCount> block(geometry, blocking, operands, index);
      PackedBlock{block, o, steps, bytes, packed.stride(0), scratch.data(), scratch.data() + blocking.width,
                  byte_row.data()}
          .run();
    }
  });
  return {packed, v_last};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) {
  m.impl("lif", TORCH_BOX(&lif));
  m.impl("lif_backward", TORCH_BOX(&lif_backward));
  m.impl("lif_packed", TORCH_BOX(&lif_packed));
  m.impl("lif_inplace", TORCH_BOX(&lif_inplace));
}

}  // namespace snn_core
