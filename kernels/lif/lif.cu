// The LIF operator on CUDA: launchers and registration. Device text: lif_kernels.cuh, arithmetic: lif.h. This file is
// host code alone: it launches kernels that lif_kernels.cu holds.
//
// Bytes through device memory for each neuron and step, in 4-byte storage (2-byte storage: half):
//     forward            reads x 4, writes s 4                         8  (+ 4 / 16 where checkpoints are kept)
//     forward, packed    reads x 4, writes 1 bit                       4.125
//     backward           reads x 4 and grad_s 4, writes grad_x 4      12  (+ 4 / 16 where T > 16: checkpoints)
// State stays in registers. Sequences of more than 16 steps need v at every 16th: the forward writes it when it is
// told to (checkpoint_every = 16); a backward without it first reruns the forward for it, which reads x once more.
// A gradient of 1 / tau reads x twice, the second time soon after the first.
//
// Nothing here waits for the device or reads its memory, so that calls can be captured in CUDA graphs. With
// SNN_EMULATED the same text is compiled by g++ and registered for CPU tensors as snn_core_emulated (cuda_launch.h).

#include "lif/lif_cuda.h"
#include "lif/options.h"
#include "native/cuda_launch.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

namespace snn_core {
namespace {

const Tensor* pointer_to(const OptionalTensor& t) { return t.has_value() ? &*t : nullptr; }

// How the tensors of one call are walked.
template <int K>
struct Plan {
  std::array<const Tensor*, K> tensors;
  Geometry<K> geometry;

  Plan(const Tensor& x, const std::array<const Tensor*, K>& tensors)
      : tensors(tensors), geometry(neuron_geometry<K>(x, tensors)), dims(x.dim()) {}

  bool is_sequence(int k) const { return tensors[k]->dim() == dims; }
  int64_t neurons() const { return geometry.outer_count() * geometry.inner_size(); }

  // Whether threads may own `width` neighbours. An operand in `read_only` may have one element for all of them.
  bool allows(int width, std::initializer_list<int> read_only) const {
    for (int k = 0; k < K; ++k) {
      if (tensors[k] == nullptr) continue;
      const bool shared = std::find(read_only.begin(), read_only.end(), k) != read_only.end();
      const int64_t time_stride = is_sequence(k) ? tensors[k]->stride(0) : 0;
      if (!runs_of(geometry, k, width, time_stride, shared)) return false;
      const bool single = geometry.inner_stride(k) == 0;
      if (!single && !aligned16(tensors[k]->data_ptr())) return false;
    }
    return true;
  }

  void fill(DeviceOperand (&operands)[K], DeviceGeometry<K>& device, int width) const {
    for (int k = 0; k < K; ++k) {
      if (tensors[k] == nullptr) continue;
      operands[k].data = tensors[k]->data_ptr();
      operands[k].time_stride = is_sequence(k) ? tensors[k]->stride(0) : 0;
      operands[k].broadcast = width > 1 && geometry.inner_stride(k) == 0;
    }
    device = to_device(geometry, width);
  }

 private:
  int64_t dims;
};

// Threads own several neurons where at least this many threads are left for each multiprocessor: with fewer of them,
// more threads are meant to be worth more than wider accesses (not yet measured on a GPU).
constexpr int64_t kThreadsWorthWidth = 128;

bool wide_enough(int64_t multiprocessors, int64_t neurons, int width) {
  return neurons / width >= kThreadsWorthWidth * multiprocessors;
}

NeuronArguments neuron_arguments(const Tensor& x, const Options& o, const OptionalTensor& reciprocal_tau) {
  if (x.size(0) > INT32_MAX) throw std::runtime_error("lif: more than 2^31 - 1 time steps");
  const auto* learned = reciprocal_tau.has_value() ? static_cast<const float*>(reciprocal_tau->data_ptr()) : nullptr;
  return {static_cast<int>(x.size(0)), o.p, o.variant, learned};
}

const CudaLif& kernels_for(const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  if (dtype == ScalarType::Float) return cuda_lif_float32;
  return dtype == ScalarType::BFloat16 ? cuda_lif_bfloat16 : cuda_lif_float16;
}

int64_t checkpoint_count(int64_t steps, int64_t every) { return every > 0 ? (steps - 1) / every : 0; }

// Also rebuilds checkpoints for a backward: then everything but x, v0 and checkpoints is absent.
void launch_forward(const Launcher& launch, const NeuronArguments& neuron, int64_t checkpoint_every,
                    const Plan<ForwardArguments::kCount>& plan) {
  using A = ForwardArguments;
  const Tensor& x = *plan.tensors[A::kX];
  const CudaLif& kernels = kernels_for(x);
  const int widest = kernels.forward_width;
  const bool wide = wide_enough(launch.multiprocessors(), plan.neurons(), widest) && plan.allows(widest, {A::kV0});
  A a{};
  a.neuron = neuron;
  a.checkpoint_every = plan.tensors[A::kCheckpoints] != nullptr ? static_cast<int>(checkpoint_every) : 0;
  plan.fill(a.operand, a.geometry, wide ? widest : 1);
  launch(kernels.forward(wide), blocks_for(a.geometry.groups, kForwardThreads), kForwardThreads, a);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lif(Tensor x, OptionalTensor v0, OptionalTensor reciprocal_tau, double tau,
                                               double v_threshold, std::optional<double> v_reset, bool decay_input,
                                               bool detach_reset, int64_t surrogate, double alpha,
                                               int64_t checkpoint_every, bool return_v_seq) {
  check_x_seq(x);
  check_state(x, pointer_to(v0), "v0");
  const Options o =
      make_options(x, reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha);
  const Launcher launch(x.get_device_index());
  const Layout layout(x);
  const int64_t checkpoints_kept = checkpoint_count(x.size(0), checkpoint_every);
  Tensor s = layout.sequence(x), v_last = layout.step_float(x);
  Tensor v_seq = return_v_seq ? layout.sequence(x) : empty_vector_like(x, x.scalar_type());
  Tensor checkpoints = checkpoint_every > 0 ? layout.sequence(x, checkpoints_kept, ScalarType::Float)
                                            : empty_vector_like(x, ScalarType::Float);
  if (layout.neurons() > 0) {
    launch_forward(launch, neuron_arguments(x, o, reciprocal_tau), checkpoint_every,
                   Plan<ForwardArguments::kCount>(x, {&x, &s, return_v_seq ? &v_seq : nullptr, pointer_to(v0), &v_last,
                                                      checkpoints_kept > 0 ? &checkpoints : nullptr}));
  }
  return {s, v_last, v_seq, checkpoints};
}

Tensor lif_inplace(Tensor x, OptionalTensor v0, OptionalTensor reciprocal_tau, double tau, double v_threshold,
                   std::optional<double> v_reset, bool decay_input, bool detach_reset, int64_t surrogate,
                   double alpha) {
  check_x_seq(x);
  check_state(x, pointer_to(v0), "v0");
  if (may_overlap(x)) throw std::runtime_error("lif_inplace: elements of x_seq share memory");
  const Options o =
      make_options(x, reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha);
  const Launcher launch(x.get_device_index());
  const Layout layout(x);
  Tensor v_last = layout.step_float(x);
  if (layout.neurons() > 0) {
    launch_forward(launch, neuron_arguments(x, o, reciprocal_tau), 0,
                   Plan<ForwardArguments::kCount>(x, {&x, &x, nullptr, pointer_to(v0), &v_last, nullptr}));
  }
  return v_last;
}

// Sums the terms of the gradient of 1 / tau, `count` of them, into `result`.
void launch_tau_sum(const Launcher& launch, const CudaLif& kernels, const Tensor& terms, int64_t count,
                    const Tensor& result) {
  const Tensor sums = empty_strided(terms, {kTauSums}, {1}, ScalarType::Double);
  const TauSumArguments a{static_cast<const double*>(terms.data_ptr()), count, static_cast<double*>(sums.data_ptr()),
                          static_cast<float*>(result.data_ptr())};
  launch(kernels.sum_tau_terms, kTauSums / 128, 128, a);
  launch(kernels.finish_tau_sum, 1, 1, a);
}

std::tuple<Tensor, Tensor, Tensor> lif_backward(OptionalTensor grad_s, OptionalTensor grad_v_last,
                                                OptionalTensor grad_v_seq, Tensor x, OptionalTensor v0,
                                                OptionalTensor reciprocal_tau, OptionalTensor checkpoints, double tau,
                                                double v_threshold, std::optional<double> v_reset, bool decay_input,
                                                bool detach_reset, int64_t surrogate, double alpha,
                                                int64_t checkpoint_every) {
  using A = BackwardArguments;
  check_x_seq(x);
  check_state(x, pointer_to(v0), "v0");
  check_state(x, pointer_to(grad_v_last), "grad_v_last");
  check_sequence(x, pointer_to(grad_s), "grad_s", x.size(0), x.scalar_type());
  check_sequence(x, pointer_to(grad_v_seq), "grad_v_seq", x.size(0), x.scalar_type());
  const Options o =
      make_options(x, reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha);
  const NeuronArguments neuron = neuron_arguments(x, o, reciprocal_tau);
  const CudaLif& kernels = kernels_for(x);
  const Launcher launch(x.get_device_index());
  const Layout layout(x);
  Tensor grad_x = layout.sequence(x), grad_tau = empty_scalar_like(x);
  Tensor grad_v0 = v0.has_value() ? layout.step_float(x) : empty_vector_like(x, ScalarType::Float);
  if (layout.neurons() == 0) {
    launch_tau_sum(launch, kernels, empty_strided(x, {0}, {1}, ScalarType::Double), 0, grad_tau);
    return {grad_x, grad_v0, grad_tau};
  }

  const int64_t needed = checkpoint_count(x.size(0), kBackwardChunk);
  if (needed > 0 && (checkpoint_every != kBackwardChunk || !checkpoints.has_value() || checkpoints->numel() == 0)) {
    checkpoints = layout.sequence(x, needed, ScalarType::Float);
    launch_forward(launch, neuron, kBackwardChunk,
                   Plan<ForwardArguments::kCount>(x, {&x, nullptr, nullptr, pointer_to(v0), nullptr, &*checkpoints}));
  } else if (needed > 0) {
    check_sequence(x, &*checkpoints, "checkpoints", needed, ScalarType::Float);
  }

  const Plan<A::kCount> plan(x, {&x, &grad_x, pointer_to(grad_s), pointer_to(grad_v_seq), pointer_to(v0),
                                 pointer_to(grad_v_last), v0.has_value() ? &grad_v0 : nullptr,
                                 needed > 0 ? &*checkpoints : nullptr});
  const int64_t multiprocessors = reciprocal_tau.has_value() ? kTauMultiprocessors : launch.multiprocessors();
  const bool wide = wide_enough(multiprocessors, plan.neurons(), kBackwardWidth) &&
                    plan.allows(kBackwardWidth, {A::kGradS, A::kGradVSeq, A::kV0, A::kGradVLast});
  const bool brief = x.size(0) <= kShortChunk;
  const auto kernel = kernels.backward(o.variant.surrogate, wide, brief);
  A a{};
  a.neuron = neuron;
  plan.fill(a.operand, a.geometry, wide ? kBackwardWidth : 1);
  a.tau_result = static_cast<float*>(grad_tau.data_ptr());
  if (!reciprocal_tau.has_value()) {
    launch(kernel, blocks_for(a.geometry.groups, kBackwardThreads), kBackwardThreads, a);
  } else {
    const int64_t blocks = blocks_for(a.geometry.groups, kBackwardThreads, kTauBlocks);
    const int64_t threads = blocks * kBackwardThreads;
    const Tensor terms = empty_strided(x, {threads}, {1}, ScalarType::Double);
    a.tau_sums = static_cast<double*>(terms.data_ptr());
    launch(kernel, blocks, kBackwardThreads, a);
    launch_tau_sum(launch, kernels, terms, threads, grad_tau);
  }
  return {grad_x, grad_v0, grad_tau};
}

// Geometry over the bytes of `packed`, eight neurons along dimension `dim` of x each.
Geometry<PackedArguments::kCount> packed_geometry(const Tensor& x, const Tensor& packed, const OptionalTensor& v0,
                                                  const Tensor& v_last, int64_t dim) {
  using A = PackedArguments;
  Geometry<A::kCount> geometry;
  for (int64_t d = 1; d < x.dim(); ++d) {
    const int64_t scale = d == dim ? 8 : 1;
    const int64_t x_stride = x.stride(d) * scale;
    // Where no byte is partly filled nobody asks for the position, and it must not stand in the way of merging.
    const int64_t position = d == dim && x.size(dim) % 8 != 0 ? 8 : 0;
    geometry.add_dimension(packed.size(d), {x_stride, packed.stride(d),
                                            v0.has_value() ? v0->stride(d - 1) * scale : x_stride,
                                            v_last.stride(d - 1) * scale, position});
  }
  geometry.coalesce();
  return geometry;
}

std::tuple<Tensor, Tensor> lif_packed(Tensor x, OptionalTensor v0, OptionalTensor reciprocal_tau, double tau,
                                      double v_threshold, std::optional<double> v_reset, bool decay_input,
                                      bool detach_reset, int64_t surrogate, double alpha, int64_t dim) {
  using A = PackedArguments;
  check_x_seq(x);
  check_state(x, pointer_to(v0), "v0");
  if (dim < 1 || dim >= x.dim()) throw std::runtime_error("lif_packed: dim must be a dimension of x_seq other than 0");
  const Options o =
      make_options(x, reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha);
  const Launcher launch(x.get_device_index());
  const Layout layout(x);
  Tensor packed = layout.packed(dim).sequence(x, x.size(0), ScalarType::Byte), v_last = layout.step_float(x);
  if (layout.neurons() == 0) return {packed, v_last};
  const auto geometry = packed_geometry(x, packed, v0, v_last, dim);
  A a{};
  a.neuron = neuron_arguments(x, o, reciprocal_tau);
  a.size = x.size(dim);
  a.operand[A::kX] = {x.data_ptr(), x.stride(0)};
  a.operand[A::kPacked] = {packed.data_ptr(), packed.stride(0)};
  if (v0.has_value()) a.operand[A::kV0] = {v0->data_ptr()};
  a.operand[A::kVLast] = {v_last.data_ptr()};
  a.lane_stride[A::kX] = x.stride(dim);
  a.lane_stride[A::kV0] = v0.has_value() ? v0->stride(dim - 1) : 0;
  a.lane_stride[A::kVLast] = v_last.stride(dim - 1);
  a.geometry = to_device(geometry, 1);
  bool wide = a.size % 8 == 0 && a.lane_stride[A::kX] == 1 && a.lane_stride[A::kVLast] == 1 &&
              aligned16(x.data_ptr()) && aligned16(v_last.data_ptr()) && x.stride(0) % 8 == 0;
  for (int d = 0; d < geometry.dims; ++d) {
    wide = wide && geometry.stride[A::kX][d] % 8 == 0 && geometry.stride[A::kVLast][d] % 8 == 0;
  }
  launch(kernels_for(x).packed(wide), blocks_for(a.geometry.groups, kForwardThreads), kForwardThreads, a);
  return {packed, v_last};
}

}  // namespace

#if defined(SNN_EMULATED)
#define SNN_OPTIONS                                                                                            \
  "Tensor? v0, Tensor? reciprocal_tau, float tau, float v_threshold, float? v_reset, bool decay_input, "     \
  "bool detach_reset, int surrogate, float alpha"
STABLE_TORCH_LIBRARY_FRAGMENT(snn_core_emulated, m) {
  m.def("lif(Tensor x_seq, " SNN_OPTIONS ", int checkpoint_every, bool return_v_seq)"
        " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("lif_backward(Tensor? grad_s, Tensor? grad_v_last, Tensor? grad_v_seq, Tensor x_seq, Tensor? v0, "
        "Tensor? reciprocal_tau, Tensor? checkpoints, float tau, float v_threshold, float? v_reset, bool decay_input, "
        "bool detach_reset, int surrogate, float alpha, int checkpoint_every) -> (Tensor, Tensor, Tensor)");
  m.def("lif_packed(Tensor x_seq, " SNN_OPTIONS ", int dim) -> (Tensor, Tensor)");
  m.def("lif_inplace(Tensor(a!) x_seq, " SNN_OPTIONS ") -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(snn_core_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(snn_core, CUDA, m) {
#endif
  m.impl("lif", TORCH_BOX(&lif));
  m.impl("lif_backward", TORCH_BOX(&lif_backward));
  m.impl("lif_packed", TORCH_BOX(&lif_packed));
  m.impl("lif_inplace", TORCH_BOX(&lif_inplace));
}

}  // namespace snn_core

#if !defined(SNN_EMULATED)
// For cuda_library() in native/__init__.py, through ctypes: null, or why kernels do not run on this device.
extern "C" __attribute__((visibility("default"))) const char* snn_core_cuda_probe(int device) {
  return snn_core::why_not(snn_core::cuda_lif_float32.forward(false), device);
}
#endif
