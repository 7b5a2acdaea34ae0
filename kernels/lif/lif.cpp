// The LIF operator on the CPU: forward, and a backward that recomputes h from x.
//
// Work is cut into blocks of neurons; a block runs through all time steps with its state in a small buffer, so every
// element of x is read once and every spike written once. The backward first reruns the block, keeping h of one chunk
// of time in a buffer that stays in the L2 cache, and for long sequences only v at the chunk borders.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "lif/lif_rows.h"
#include "lif/row_view.h"
#include "native/strided.h"
#include "native/tensors.h"

namespace snn_core {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kBlock = 4096;             // neurons a block at most: 16 kB of state
constexpr int64_t kMinBlock = 256;           // and at least, where T is large
constexpr int64_t kHistory = 128 * 1024;     // floats of h kept by the backward: 512 kB, half a typical L2
constexpr int64_t kParallelGrain = 32768;    // element steps below which a thread is not worth waking

struct Options {
  LifParameters p{};
  LifVariant variant{};
};

Options make_options(const OptionalTensor& reciprocal_tau, double tau, double v_threshold,
                     std::optional<double> v_reset, bool decay_input, bool detach_reset, int64_t surrogate,
                     double alpha) {
  if (surrogate < 0 || surrogate >= kSurrogateCount) throw std::runtime_error("lif: unknown surrogate code");
  Options o;
  o.p.tau = static_cast<float>(tau);
  o.p.reciprocal_tau = 1.0f / o.p.tau;
  int exponent = 0;
  // Multiplying by 1 / tau rounds like dividing by tau only when tau is a power of two (or infinite, where it is 0).
  o.variant.divide = std::isfinite(tau) && std::frexp(o.p.tau, &exponent) != 0.5f;
  if (reciprocal_tau.has_value()) {
    if (reciprocal_tau->scalar_type() != ScalarType::Float) throw std::runtime_error("lif: reciprocal_tau not float32");
    o.p.reciprocal_tau = *static_cast<const float*>(reciprocal_tau->data_ptr());
    o.variant.divide = false;
  }
  o.p.v_threshold = static_cast<float>(v_threshold);
  o.p.v_reset = static_cast<float>(v_reset.value_or(0.0));
  o.p.alpha = static_cast<float>(alpha);
  o.p.input_scale = decay_input ? o.p.reciprocal_tau : 1.0f;
  o.variant.decay_input = decay_input;
  o.variant.soft_reset = !v_reset.has_value();
  o.variant.detach_reset = detach_reset;
  o.variant.surrogate = static_cast<int>(surrogate);
  return o;
}

ForwardRow forward_row(const LifVariant& v) { return rows().forward[v.decay_input][v.divide][v.soft_reset]; }

// How the neurons are cut: a pure function of the shape, so that sums are the same for any number of threads.
struct Blocking {
  int64_t width, blocks_per_run, count;

  template <int K>
  Blocking(const Geometry<K>& geometry, int64_t widest) {
    const int64_t inner = geometry.inner_size();
    // At least 16 blocks for the threads to share where there is enough work, in whole cache lines.
    const int64_t share = (inner * geometry.outer_count() / 16 + 63) / 64 * 64;
    width = std::max<int64_t>(1, std::min({inner, widest, std::max<int64_t>(share, 1024)}));
    blocks_per_run = (inner + width - 1) / width;
    count = geometry.outer_count() * blocks_per_run;
  }
};

int64_t grain(const Blocking& blocking, int64_t steps) {
  return std::max<int64_t>(1, kParallelGrain / std::max<int64_t>(1, blocking.width * steps));
}

void load_state(const RowView& v0, float v_reset, float* v, int64_t n) {
  if (!v0.operand) {
    std::fill_n(v, n, v_reset);
  } else {
    const float* source = v0.read(0, v, n);
    if (source != v) std::copy_n(source, n, v);
  }
}

void store_state(const RowView& view, float* v, int64_t n) {
  float* target = view.target(0, v);
  if (target != v) std::copy_n(v, n, target);
  view.write(0, v, n);
}

std::tuple<Tensor, Tensor, Tensor> lif(Tensor x, OptionalTensor v0, OptionalTensor reciprocal_tau, double tau,
                                       double v_threshold, std::optional<double> v_reset, bool decay_input,
                                       bool detach_reset, int64_t surrogate, double alpha, bool return_v_seq) {
  const Options o =
      make_options(reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha);
  const Layout layout(x);
  Tensor s = layout.sequence(x), v_last = layout.step_float(x);
  Tensor v_seq = return_v_seq ? layout.sequence(x) : empty_scalar_like(x, true);
  const int64_t steps = x.size(0);
  if (layout.neurons() == 0) return {s, v_last, v_seq};
  advise_huge_pages(s);
  if (return_v_seq) advise_huge_pages(v_seq);

  enum { kX, kS, kVSeq, kV0, kVLast, kCount };
  const auto geometry = make_geometry<kCount>(
      x, {&x, &s, return_v_seq ? &v_seq : nullptr, v0.has_value() ? &*v0 : nullptr, &v_last});
  const std::array<Operand, kCount> operands{sequence_operand(x), sequence_operand(s),
                                             return_v_seq ? sequence_operand(v_seq) : Operand{},
                                             v0.has_value() ? step_operand(*v0) : Operand{}, step_operand(v_last)};
  const Blocking blocking(geometry, kBlock);
  const ForwardRow row = forward_row(o.variant);

  torch::stable::parallel_for(0, blocking.count, grain(blocking, steps), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(3 * blocking.width);
    float *v = scratch.data(), *x_buffer = v + blocking.width, *s_buffer = x_buffer + blocking.width;
    for (int64_t block = begin; block < end; ++block) {
      const auto outer = geometry.outer_offset(block / blocking.blocks_per_run);
      const int64_t start = block % blocking.blocks_per_run * blocking.width;
      const int64_t n = std::min(blocking.width, geometry.inner_size() - start);
      std::array<RowView, kCount> view;
      for (int k = 0; k < kCount; ++k) {
        const int64_t stride = geometry.inner_stride(k);
        view[k] = {operands[k], outer[k] + start * stride, stride};
      }
      load_state(view[kV0], o.p.v_reset, v, n);
      for (int64_t t = 0; t < steps; ++t) {
        row(view[kX].read(t, x_buffer, n), view[kX].ahead(t + 1, steps), v, view[kS].target(t, s_buffer), nullptr, n,
            o.p);
        view[kS].write(t, s_buffer, n);
        if (view[kVSeq].operand) {
          float* target = view[kVSeq].target(t, s_buffer);
          std::copy_n(v, n, target);
          view[kVSeq].write(t, s_buffer, n);
        }
      }
      store_state(view[kVLast], v, n);
    }
  });
  return {s, v_last, v_seq};
}

// Everything a block of the backward works with.
struct BackwardBlock {
  enum { kX, kGx, kGs, kGvSeq, kV0, kGvLast, kGv0, kCount };
  const Options& o;
  std::array<RowView, kCount> view;
  int64_t steps, chunk, width, n;
  float *history, *checkpoints, *carry, *v, *x_buffer, *g_buffer, *out_buffer, *gh_buffer;
  bool learn_tau;

  static int64_t scratch_floats(int64_t width, int64_t chunk, int64_t steps) {
    return width * (chunk + (steps + chunk - 1) / chunk + 6);
  }

  void forward_chunk(int64_t first, int64_t last, bool keep) const {
    const ForwardRow row = forward_row(o.variant);
    for (int64_t t = first; t < last; ++t) {
      row(view[kX].read(t, x_buffer, n), view[kX].ahead(t + 1, steps), v, nullptr,
          keep ? history + (t - first) * width : nullptr, n, o.p);
    }
  }

  // d loss / d reciprocal_tau of one step: gh * d h / d q.
  double tau_gradient(int64_t t, const float* v_before) const {
    const float* x = view[kX].read(t, x_buffer, n);
    double sums[8] = {};
    for (int64_t i = 0; i < n; ++i) {
      const float leak = v_before[i] - o.p.v_reset;
      sums[i % 8] += static_cast<double>(gh_buffer[i]) * (o.variant.decay_input ? x[i] - leak : -leak);
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }

  double run() const {
    const auto& variant = o.variant;
    const BackwardRow row = rows().backward[variant.surrogate][variant.soft_reset][variant.detach_reset];
    const int64_t chunks = (steps + chunk - 1) / chunk;
    double tau_sum = 0.0;
    load_state(view[kV0], o.p.v_reset, v, n);
    for (int64_t c = 0; c < chunks; ++c) {
      std::copy_n(v, n, checkpoints + c * width);
      if (c + 1 < chunks) forward_chunk(c * chunk, (c + 1) * chunk, false);
    }
    if (view[kGvLast].operand) {
      load_state(view[kGvLast], 0.0f, carry, n);
    } else {
      std::fill_n(carry, n, 0.0f);
    }
    for (int64_t c = chunks - 1; c >= 0; --c) {
      const int64_t first = c * chunk, last = std::min(steps, first + chunk);
      std::copy_n(checkpoints + c * width, n, v);
      forward_chunk(first, last, true);
      for (int64_t t = last - 1; t >= first; --t) {
        if (view[kGvSeq].operand) rows().add(view[kGvSeq].read(t, g_buffer, n), carry, n);
        const float* gs = view[kGs].operand ? view[kGs].read(t, g_buffer, n) : nullptr;
        const float* h = history + (t - first) * width;
        row(gs, gs != nullptr ? view[kGs].ahead(t - 1, steps) : nullptr, h, carry, view[kGx].target(t, out_buffer),
            learn_tau ? gh_buffer : nullptr, n, o.p);
        view[kGx].write(t, out_buffer, n);
        if (learn_tau) {
          const float* before = checkpoints + c * width;
          if (t > first) {
            for (int64_t i = 0; i < n; ++i) {
              v[i] = variant.soft_reset ? lif_reset<true>(h[i - width], o.p) : lif_reset<false>(h[i - width], o.p);
            }
            before = v;
          }
          tau_sum += tau_gradient(t, before);
        }
      }
    }
    store_state(view[kGv0], carry, n);
    return tau_sum;
  }
};

std::tuple<Tensor, Tensor, Tensor> lif_backward(OptionalTensor gs, OptionalTensor gv_last, OptionalTensor gv_seq,
                                                Tensor x, OptionalTensor v0, OptionalTensor reciprocal_tau, double tau,
                                                double v_threshold, std::optional<double> v_reset, bool decay_input,
                                                bool detach_reset, int64_t surrogate, double alpha) {
  const Options o =
      make_options(reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha);
  const Layout layout(x);
  Tensor gx = layout.sequence(x), gv0 = layout.step_float(x), g_reciprocal_tau = empty_scalar_like(x, false);
  float* const tau_result = static_cast<float*>(g_reciprocal_tau.data_ptr());
  *tau_result = 0.0f;
  if (layout.neurons() == 0) return {gx, gv0, g_reciprocal_tau};
  advise_huge_pages(gx);

  using B = BackwardBlock;
  const auto maybe = [](const OptionalTensor& t) { return t.has_value() ? &*t : nullptr; };
  const auto geometry = make_geometry<B::kCount>(
      x, {&x, &gx, maybe(gs), maybe(gv_seq), maybe(v0), maybe(gv_last), &gv0});
  const auto sequence = [](const OptionalTensor& t) { return t.has_value() ? sequence_operand(*t) : Operand{}; };
  const auto step = [](const OptionalTensor& t) { return t.has_value() ? step_operand(*t) : Operand{}; };
  const std::array<Operand, B::kCount> operands{sequence_operand(x), sequence_operand(gx), sequence(gs),
                                                sequence(gv_seq),    step(v0),             step(gv_last),
                                                step_operand(gv0)};
  const int64_t steps = x.size(0);
  const Blocking blocking(geometry, std::clamp(kHistory / steps / 64 * 64, kMinBlock, kBlock));
  const int64_t chunk = std::min(steps, std::max<int64_t>(1, kHistory / blocking.width));
  std::vector<double> tau_sums(blocking.count, 0.0);

  torch::stable::parallel_for(0, blocking.count, grain(blocking, steps), [&](int64_t begin, int64_t end) {
    const int64_t w = blocking.width;
    // Not value-initialised: every part is written before it is read.
    const std::unique_ptr<float[]> scratch(new float[B::scratch_floats(w, chunk, steps)]);
    float* const base = scratch.get();
    float* const checkpoints = base + 6 * w;
    float* const history = checkpoints + (steps + chunk - 1) / chunk * w;
    for (int64_t block = begin; block < end; ++block) {
      const auto outer = geometry.outer_offset(block / blocking.blocks_per_run);
      const int64_t start = block % blocking.blocks_per_run * w;
      const int64_t n = std::min(w, geometry.inner_size() - start);
      std::array<RowView, B::kCount> view;
      for (int k = 0; k < B::kCount; ++k) {
        const int64_t stride = geometry.inner_stride(k);
        view[k] = {operands[k], outer[k] + start * stride, stride};
      }
      tau_sums[block] = B{o, view, steps, chunk, w, n, history, checkpoints, base, base + w, base + 2 * w,
                          base + 3 * w, base + 4 * w, base + 5 * w, reciprocal_tau.has_value()}.run();
    }
  });
  double total = 0.0;
  for (const double value : tau_sums) total += value;
  *tau_result = static_cast<float>(total);
  return {gx, gv0, g_reciprocal_tau};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) {
  m.impl("lif", TORCH_BOX(&lif));
  m.impl("lif_backward", TORCH_BOX(&lif_backward));
}

}  // namespace snn_core
