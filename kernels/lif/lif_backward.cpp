// The backward of the LIF operator on the CPU: recomputes h from x.
//
// A block of neurons goes through time in chunks, from the last to the first: a chunk is first run forward from the
// saved potential at its border, keeping h in a buffer that stays in the L2 cache, then backward. Without saved
// potentials the block first runs forward once more to find them.

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
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
namespace {

constexpr int64_t kHistory = 128 * 1024;  // floats of h kept: 512 kB, half a typical L2 cache
constexpr int64_t kMinBlock = 512, kMaxBlock = 2048, kFusedBlock = 8192;

enum { kX, kGx, kGs, kGvSeq, kCheckpoints, kV0, kGvLast, kGv0, kCount };

// What one thread works in; each part is `width` floats times the number given.
struct Scratch {
  float *history;  // chunk: h of the chunk's steps
  float *borders;  // chunks: v with which each chunk starts, where it was not saved
  float *carry;    // 1: gradient of v
  float *v;        // 1
  float *x_row, *g_row, *out_row;  // 1 each: a step in float32
  float* one_for_all;              // 1: a gradient that is the same for all neurons, in the storage type

  static int64_t floats(int64_t width, int64_t chunk, int64_t chunks) { return width * (chunk + chunks + 6); }

  Scratch(float* base, int64_t width, int64_t chunk, int64_t chunks)
      : history(base),
        borders(history + chunk * width),
        carry(borders + chunks * width),
        v(carry + width),
        x_row(v + width),
        g_row(x_row + width),
        out_row(g_row + width),
        one_for_all(out_row + width) {}

  // Fills one_for_all with the element at `value`, or with zeros.
  void spread(const void* value, int64_t bytes, int64_t n) const {
    if (value == nullptr) {
      row_tools().fill(0.0f, one_for_all, n);
    } else if (bytes == 4) {
      row_tools().fill(*static_cast<const float*>(value), one_for_all, n);
    } else {
      std::fill_n(reinterpret_cast<uint16_t*>(one_for_all), n, *static_cast<const uint16_t*>(value));
    }
  }
};

struct BackwardBlock {
  const Block<kCount>& block;
  const Options& o;
  const Scratch& scratch;
  int64_t steps, chunk, width;
  bool learn_tau, stream;

  const RowView& view(int k) const { return block.view[k]; }

  // h of steps first .. last - 1 into the history; the state goes on in scratch.v.
  void forward_chunk(int64_t first, int64_t last) const {
    const auto& v = o.variant;
    const auto& table = forward_table().history;
    const RowView& x = view(kX);
    if (x.contiguous()) {
      const ForwardRows rows{x.at(first), x.operand.time_stride, scratch.history, width, scratch.v,
                             block.n,     last - first,          false};
      return table[x.operand.storage][v.decay_input][v.divide][v.soft_reset](rows, o.p);
    }
    for (int64_t t = first; t < last; ++t) {
      const ForwardRows rows{x.read(t, scratch.x_row, block.n), 0, scratch.history + (t - first) * width, 0, scratch.v,
                             block.n, 1, false};
      table[kFloat32][v.decay_input][v.divide][v.soft_reset](rows, o.p);
    }
  }

  BackwardKernel kernel(Storage storage) const {
    const auto& v = o.variant;
    return backward_table().kernel[storage][v.surrogate][v.soft_reset][v.detach_reset];
  }

  // Whether the gradient of the spikes is one number (an expanded tensor, as of a sum) or absent.
  bool one_for_all() const {
    const RowView& gs = view(kGs);
    return !gs.operand || (gs.stride == 0 && gs.operand.time_stride == 0);
  }

  void backward_chunk(int64_t first, int64_t last) const {
    const RowView &gs = view(kGs), &gx = view(kGx);
    const bool own = !one_for_all();
    const BackwardRows rows{own ? gs.at(first) : reinterpret_cast<char*>(scratch.one_for_all),
                            own ? gs.operand.time_stride : 0,
                            scratch.history,
                            width,
                            scratch.carry,
                            gx.at(first),
                            gx.operand.time_stride,
                            block.n,
                            last - first,
                            stream};
    kernel(gx.operand.storage)(rows, o.p);
  }

  // The same step by step in float32: where rows must be gathered, where v has gradients of its own, and for tau.
  double backward_chunk_by_steps(int64_t first, int64_t last, const float* v_before_chunk) const {
    const RowView &gs = view(kGs), &gx = view(kGx), &gv = view(kGvSeq);
    const int64_t n = block.n;
    double tau_sum = 0.0;
    for (int64_t t = last - 1; t >= first; --t) {
      if (gv.operand) {
        const float* own = gv.read(t, scratch.g_row, n);
        row_tools().add[kFloat32](own, scratch.carry, n);
      }
      const float* h = scratch.history + (t - first) * width;
      const void* g = gs.operand ? gs.read(t, scratch.g_row, n) : scratch.one_for_all;
      float* out = gx.target(t, scratch.out_row);
      kernel(kFloat32)(BackwardRows{g, 0, h, 0, scratch.carry, out, 0, n, 1, false}, o.p);
      if (learn_tau) tau_sum += tau_gradient(t, out, t > first ? h - width : nullptr, v_before_chunk);
      gx.write(t, out, n);
    }
    return tau_sum;
  }

  // d loss / d reciprocal_tau of step t: the sum of gh * d h / d reciprocal_tau. `gh` comes in as the kernel left it,
  // with an input scale of 1, and leaves as the gradient of x.
  double tau_gradient(int64_t t, float* gh, const float* h_before, const float* v_before_chunk) const {
    const float* x = view(kX).read(t, scratch.x_row, block.n);
    const bool decay_input = o.variant.decay_input, soft = o.variant.soft_reset;
    double sums[8] = {};
    for (int64_t i = 0; i < block.n; ++i) {
      const float v = h_before == nullptr ? v_before_chunk[i]
                      : soft              ? lif_reset<true>(h_before[i], o.p)
                                          : lif_reset<false>(h_before[i], o.p);
      const float leak = v - o.p.v_reset;
      sums[i % 8] += static_cast<double>(gh[i]) * (decay_input ? x[i] - leak : -leak);
    }
    if (decay_input) {
      for (int64_t i = 0; i < block.n; ++i) gh[i] *= o.p.reciprocal_tau;
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }

  void load_border(int64_t c, float* v) const {
    if (c == 0) {
      load_state(view(kV0), o.p.v_reset, v, block.n);
    } else if (view(kCheckpoints).operand) {
      const float* saved = view(kCheckpoints).read(c - 1, v, block.n);
      if (saved != v) std::copy_n(saved, block.n, v);
    } else {
      std::copy_n(scratch.borders + c * width, block.n, v);
    }
  }

  void find_borders(int64_t chunks) const {
    load_border(0, scratch.v);
    for (int64_t c = 1; c < chunks; ++c) {
      forward_chunk((c - 1) * chunk, c * chunk);
      std::copy_n(scratch.v, block.n, scratch.borders + c * width);
    }
  }

  // Whether all is in a form for the fused kernel, which takes the whole sequence.
  static bool fusible(const Options& o, int64_t steps, bool learn_tau) {
    return steps == kFusedSteps && !o.variant.divide && !learn_tau;
  }

  void run_fused() const {
    const auto& v = o.variant;
    const RowView &x = view(kX), &gs = view(kGs), &gx = view(kGx);
    const bool own = !one_for_all();
    load_border(0, scratch.v);
    const FusedRows rows{x.at(0),
                         x.operand.time_stride,
                         own ? gs.at(0) : reinterpret_cast<char*>(scratch.one_for_all),
                         own ? gs.operand.time_stride : 0,
                         scratch.v,
                         scratch.carry,
                         gx.at(0),
                         gx.operand.time_stride,
                         block.n,
                         v.decay_input,
                         stream};
    backward_table().fused[gx.operand.storage][v.surrogate][v.soft_reset][v.detach_reset](rows, o.p);
    if (view(kGv0).operand) store_state(view(kGv0), 0, scratch.carry, block.n);
  }

  double run() const {
    const int64_t chunks = (steps + chunk - 1) / chunk;
    if (!view(kCheckpoints).operand && chunks > 1) find_borders(chunks);
    load_state(view(kGvLast), 0.0f, scratch.carry, block.n);
    const RowView& gs = view(kGs);
    const bool whole = view(kX).contiguous() && view(kGx).contiguous() && !view(kGvSeq).operand && !learn_tau &&
                       (one_for_all() || gs.contiguous());
    if (!gs.operand) {
      scratch.spread(nullptr, 0, block.n);
    } else if (whole && one_for_all()) {
      scratch.spread(gs.at(0), storage_bytes(gs.operand.storage), block.n);
    }
    if (whole && fusible(o, steps, learn_tau)) {
      run_fused();
      return 0.0;
    }
    double tau_sum = 0.0;
    for (int64_t c = chunks - 1; c >= 0; --c) {
      const int64_t first = c * chunk, last = std::min(steps, first + chunk);
      load_border(c, scratch.v);
      forward_chunk(first, last);
      if (whole) {
        backward_chunk(first, last);
        continue;
      }
      if (learn_tau) load_border(c, scratch.v);
      tau_sum += backward_chunk_by_steps(first, last, scratch.v);
    }
    if (view(kGv0).operand) store_state(view(kGv0), 0, scratch.carry, block.n);
    return tau_sum;
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> lif_backward(OptionalTensor gs, OptionalTensor gv_last, OptionalTensor gv_seq,
                                                Tensor x, OptionalTensor v0, OptionalTensor reciprocal_tau,
                                                OptionalTensor checkpoints, double tau, double v_threshold,
                                                std::optional<double> v_reset, bool decay_input, bool detach_reset,
                                                int64_t surrogate, double alpha, int64_t checkpoint_every) {
  const auto maybe = [](const OptionalTensor& t) { return t.has_value() ? &*t : nullptr; };
  check_x_seq(x);
  check_sequence(x, maybe(gs), "grad_s", x.size(0), x.scalar_type());
  check_sequence(x, maybe(gv_seq), "grad_v_seq", x.size(0), x.scalar_type());
  check_state(x, maybe(gv_last), "grad_v_last");
  check_state(x, maybe(v0), "v0");
  Options o = make_options(x, reciprocal_tau, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha);
  if (reciprocal_tau.has_value()) {
    apply_reciprocal_tau(o.p, decay_input, *static_cast<const float*>(reciprocal_tau->data_ptr()));
    o.p.input_scale = 1.0f;  // tau_gradient() needs the gradient of h and scales it afterwards
  }
  const int64_t steps = x.size(0);
  const bool saved = checkpoints.has_value() && checkpoints->numel() > 0 && checkpoint_every > 0 &&
                     (steps - 1) / checkpoint_every > 0;
  if (saved) check_sequence(x, &*checkpoints, "checkpoints", (steps - 1) / checkpoint_every, ScalarType::Float);

  const Layout layout(x);
  Tensor gx = layout.sequence(x);
  Tensor gv0 = v0.has_value() ? layout.step_float(x) : empty_vector_like(x, ScalarType::Float);
  Tensor g_reciprocal_tau = empty_scalar_like(x);
  float* const tau_result = static_cast<float*>(g_reciprocal_tau.data_ptr());
  *tau_result = 0.0f;
  if (layout.neurons() == 0) return {gx, gv0, g_reciprocal_tau};
  advise_huge_pages(gx);

  const auto geometry = neuron_geometry<kCount>(x, {&x, &gx, maybe(gs), maybe(gv_seq), saved ? &*checkpoints : nullptr,
                                                    maybe(v0), maybe(gv_last), v0.has_value() ? &gv0 : nullptr});
  const auto sequence = [](const Tensor* t) { return t != nullptr ? sequence_operand(*t) : Operand{}; };
  const auto state = [](const Tensor* t) { return t != nullptr ? state_operand(*t) : Operand{}; };
  const std::array<Operand, kCount> operands{
      sequence_operand(x),  sequence_operand(gx), sequence(maybe(gs)),   sequence(maybe(gv_seq)),
      sequence(saved ? &*checkpoints : nullptr), state(maybe(v0)), state(maybe(gv_last)),
      v0.has_value() ? state_operand(gv0) : Operand{}};
  const int64_t span = saved ? std::min(steps, checkpoint_every) : steps;
  // Nothing but rows passes through the caches where h stays in registers: longer rows then.
  const int64_t widest = BackwardBlock::fusible(o, steps, reciprocal_tau.has_value()) ? kFusedBlock : kMaxBlock;
  const Blocking blocking(geometry, std::clamp(kHistory / span / 64 * 64, kMinBlock, widest));
  const int64_t chunk = saved ? checkpoint_every : std::min(steps, std::max<int64_t>(1, kHistory / blocking.width));
  const int64_t chunks = (steps + chunk - 1) / chunk;
  const bool stream = large(gx);
  std::vector<double> tau_sums(blocking.count, 0.0);

  torch::stable::parallel_for(0, blocking.count, blocking.grain(steps), [&](int64_t begin, int64_t end) {
    const int64_t w = blocking.width;
    // Not value-initialised: every part is written before it is read.
    const int64_t borders = saved ? 0 : chunks;
    const std::unique_ptr<float[]> memory(new float[Scratch::floats(w, chunk, borders)]);
    const Scratch scratch(memory.get(), w, chunk, borders);
    for (int64_t index = begin; index < end; ++index) {
      const Block<kCount> block(geometry, blocking, operands, index);
      tau_sums[index] = BackwardBlock{block, o, scratch, steps, chunk, w, reciprocal_tau.has_value(),
                                      stream && block.view[kGx].aligned()}
                            .run();
    }
  });
  double total = 0.0;
  for (const double value : tau_sums) total += value;
  *tau_result = static_cast<float>(total);
  return {gx, gv0, g_reciprocal_tau};
}

}  // namespace snn_core
