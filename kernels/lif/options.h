// What the CPU and the CUDA launchers of the LIF operator share: options, checks of the tensors, their common geometry.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>
#include <string>

#include "lif/lif.h"
#include "native/strided.h"
#include "native/tensors.h"

namespace snn_core {

using OptionalTensor = std::optional<Tensor>;

struct Options {
  LifParameters p{};
  LifVariant variant{};
};

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// `reciprocal_tau` itself is not read here: it may lie on a GPU. A learned value replaces p.reciprocal_tau and, with
// decay_input, p.input_scale (apply_reciprocal_tau).
inline Options make_options(const Tensor& x, const OptionalTensor& reciprocal_tau, double tau, double v_threshold,
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
    if (reciprocal_tau->scalar_type() != ScalarType::Float || reciprocal_tau->numel() != 1) {
      throw std::runtime_error("lif: reciprocal_tau must be one float32 element");
    }
    if (!same_device(*reciprocal_tau, x)) throw std::runtime_error("lif: reciprocal_tau is not on the device of x_seq");
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

// Throws unless `t` has the shape, dtype and device that x asks for: a sequence [steps, ...] in the given dtype, or a
// state [...] in float32. Null passes.
inline void require(bool fits, const char* name) {
  if (!fits) {
    throw std::runtime_error(std::string("lif: ") + name + " has another shape, dtype or device than x_seq asks for");
  }
}
inline void check_sequence(const Tensor& x, const Tensor* t, const char* name, int64_t steps, ScalarType dtype) {
  if (t == nullptr) return;
  bool fits = t->dim() == x.dim() && t->size(0) == steps && t->scalar_type() == dtype && same_device(*t, x);
  for (int64_t d = 1; fits && d < x.dim(); ++d) fits = t->size(d) == x.size(d);
  require(fits, name);
}
inline void check_state(const Tensor& x, const Tensor* t, const char* name) {
  if (t == nullptr) return;
  bool fits = t->dim() == x.dim() - 1 && t->scalar_type() == ScalarType::Float && same_device(*t, x);
  for (int64_t d = 1; fits && d < x.dim(); ++d) fits = t->size(d - 1) == x.size(d);
  require(fits, name);
}

// Whether two elements may lie at one address: dimensions in order of their strides must step over all inner ones.
inline bool may_overlap(const Tensor& x) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) == 0) return false;
    if (x.size(d) > 1) dims.emplace_back(x.stride(d), x.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return true;
    reach += stride * (size - 1);
  }
  return false;
}

inline void check_x_seq(const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) {
    throw std::runtime_error("lif: x_seq must be float32, bfloat16 or float16");
  }
  if (x.dim() < 1 || x.size(0) < 1) throw std::runtime_error("lif: x_seq needs a leading time dimension of at least 1");
  if (x.dim() - 1 > kMaxDims) throw std::runtime_error("lif: more than 24 dimensions");
}

// Strides of the operands over the neuron dimensions of x, merged. An operand is [T, ...], [...] or absent (null).
template <int K>
Geometry<K> neuron_geometry(const Tensor& x, const std::array<const Tensor*, K>& operands) {
  Geometry<K> geometry;
  for (int64_t d = 1; d < x.dim(); ++d) {
    std::array<int64_t, K> strides{};
    for (int k = 0; k < K; ++k) {
      if (operands[k] != nullptr) strides[k] = operands[k]->stride(operands[k]->dim() == x.dim() ? d : d - 1);
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
