// The top-k sampler on the CPU: operators on [blocks, M], and those that work on a weight's own layout.

#include "topk_sampler/topk_sampler.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "native/tensors.h"
#include "topk_sampler/topk_rows.h"
#include "topk_sampler/topk_tiles.h"

namespace snn_core {
namespace {

using OptionalTensor = std::optional<Tensor>;
constexpr int64_t kGrainElements = 32768;  // below which a thread is not worth waking

void check_float(const Tensor& t, const char* what) { require(t.scalar_type() == ScalarType::Float, what); }

KeyOptions key_options(int64_t m, int64_t n, double kappa, double rho, double eta, int64_t seed, int64_t offset) {
  require(m >= 1 && m <= kMaxPositions, "M must be 1 to 32");
  require(n >= 1 && n <= m, "n must be 1 to M");
  return {m, n, static_cast<float>(kappa), static_cast<float>(rho), static_cast<float>(eta), false,
          static_cast<uint64_t>(offset), PhiloxKeys(static_cast<uint64_t>(seed))};
}

float* data_of(const Tensor& t) { return static_cast<float*>(t.data_ptr()); }

// Calls work(first, count, tile's index) on every tile, `make` once a run of them for its buffers.
template <class Make>
void for_each_tile(int64_t m, int64_t blocks, Make make) {
  const int64_t width = tile_width(m), tiles = (blocks + width - 1) / width;
  const int64_t grain = std::max<int64_t>(1, kGrainElements / (width * m));
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    auto work = make(width);
    for (int64_t tile = begin; tile < end; ++tile) {
      work(tile * width, std::min(width, blocks - tile * width), tile);
    }
  });
}

// Non-finite blocks, one number a tile.
class Wrong {
 public:
  Wrong(int64_t m, int64_t blocks) : of_tile_((blocks + tile_width(m) - 1) / tile_width(m)) {}
  int64_t& operator[](int64_t tile) { return of_tile_[tile]; }
  Tensor sum(const Tensor& like) const {
    Tensor result = empty_strided(like, {}, {}, ScalarType::Long);
    int64_t total = 0;
    for (const int64_t count : of_tile_) total += count;
    *static_cast<int64_t*>(result.data_ptr()) = total;
    return result;
  }

 private:
  std::vector<int64_t> of_tile_;
};

// [blocks, M], position-major where `like` is.
Tensor empty_blocks(const Tensor& like, ScalarType dtype) {
  const int64_t blocks = like.size(0), m = like.size(1);
  const bool columns = like.stride(0) == 1;
  return empty_strided(like, {blocks, m},
                       {columns ? 1 : m, columns ? std::max<int64_t>(1, blocks) : 1}, dtype);
}

void check_blocks(const Tensor& logits, const OptionalTensor& other, const char* what) {
  require(logits.dim() == 2, "logits must be [blocks, M]");
  check_float(logits, "logits must be float32");
  if (!other.has_value()) return;
  check_float(*other, what);
  require(other->dim() == 2 && other->size(0) == logits.size(0) && other->size(1) == logits.size(1), what);
}

Tiles blocks_tiles(const OptionalTensor& t, int64_t width) {
  return t.has_value() ? Tiles(layout_of_blocks(*t), data_of(*t), width) : Tiles();
}

KeyTile key_tile(Tiles& logits, Tiles& anchor, int64_t first, int64_t count) {
  return {logits.rows(first, count), logits.stride(count), anchor.rows(first, count), anchor.stride(count), first,
          count};
}

std::tuple<Tensor, Tensor> topk_sample(Tensor logits, OptionalTensor anchor, int64_t n, double kappa, double rho,
                                       double eta, int64_t seed, int64_t offset) {
  check_blocks(logits, anchor, "anchor must be float32 like logits");
  const int64_t blocks = logits.size(0), m = logits.size(1);
  const KeyOptions o = key_options(m, n, kappa, rho, eta, seed, offset);
  Tensor mask = empty_blocks(logits, ScalarType::Byte);
  const BlockLayout mask_layout = layout_of_blocks(mask);
  auto* const bytes = static_cast<uint8_t*>(mask.data_ptr());
  Wrong wrong(m, blocks);
  for_each_tile(m, blocks, [&](int64_t width) {
    return [&, width, from = blocks_tiles(logits, width), beside = blocks_tiles(anchor, width),
            buffer = std::vector<uint8_t>(m * width)](int64_t first, int64_t count, int64_t tile) mutable {
      const KeyTile key = key_tile(from, beside, first, count);
      const bool in_place = mask_layout.position_major() && count % kWidestVector == 0;
      uint8_t* const target = in_place ? bytes + first : buffer.data();
      wrong[tile] = topk_table().draw(
          o, {key, target, in_place ? mask_layout.position : width, nullptr, 0, nullptr, 0, 0.0f});
      if (!in_place) mask_layout.scatter(buffer.data(), width, first, count, bytes);
    };
  });
  return {mask, wrong.sum(logits)};
}

Tensor soft_or_gradient(const OptionalTensor& grad, const Tensor& logits, const OptionalTensor& anchor,
                        const KeyOptions& o, double temperature) {
  require(temperature > 0, "temperature must be positive");
  const int64_t blocks = logits.size(0), m = logits.size(1);
  Tensor out = empty_blocks(logits, ScalarType::Float);
  for_each_tile(m, blocks, [&](int64_t width) {
    return [&, from = blocks_tiles(logits, width), beside = blocks_tiles(anchor, width),
            gradient = blocks_tiles(grad, width), to = blocks_tiles(out, width)](int64_t first, int64_t count,
                                                                                 int64_t) mutable {
      SoftTile t{key_tile(from, beside, first, count), static_cast<float>(1.0 / temperature),
                 gradient.rows(first, count), gradient.stride(count), to.rows(first, count, false), to.stride(count)};
      (gradient ? topk_table().soft_backward : topk_table().soft)(o, t);
      to.write(first, count);
    };
  });
  return out;
}

Tensor topk_sample_soft(Tensor logits, OptionalTensor anchor, int64_t n, double kappa, double rho, double eta,
                        int64_t seed, int64_t offset, double temperature) {
  check_blocks(logits, anchor, "anchor must be float32 like logits");
  return soft_or_gradient(std::nullopt, logits, anchor, key_options(logits.size(1), n, kappa, rho, eta, seed, offset),
                          temperature);
}

Tensor topk_sample_backward(Tensor grad, Tensor logits, OptionalTensor anchor, int64_t n, double kappa, double rho,
                            double eta, int64_t seed, int64_t offset, double temperature) {
  check_blocks(logits, anchor, "anchor must be float32 like logits");
  check_blocks(logits, grad, "grad must be float32 like logits");
  return soft_or_gradient(grad, logits, anchor, key_options(logits.size(1), n, kappa, rho, eta, seed, offset),
                          temperature);
}

Tensor like_weight(const Tensor& weight, ScalarType dtype) {
  std::vector<int64_t> size, stride;
  for (int64_t d = 0; d < weight.dim(); ++d) {
    size.push_back(weight.size(d));
    stride.push_back(weight.stride(d));
  }
  return empty_strided(weight, size, is_dense(size, stride) ? stride : dense_strides(size, stride), dtype);
}

void check_columns(const Tensor& t, const Tensor& weight, int64_t m, const char* what) {
  check_float(t, what);
  require(t.dim() == 2 && t.size(0) == m && t.size(1) * m == weight.numel(), what);
}

Tiles column_tiles(const OptionalTensor& t, int64_t width) {
  return t.has_value() ? Tiles(layout_of_columns(*t), data_of(*t), width) : Tiles();
}

std::tuple<Tensor, Tensor, Tensor> topk_mask_weight(Tensor weight, OptionalTensor logits, int64_t m, int64_t n,
                                                    double kappa, double rho, double eta, int64_t seed,
                                                    int64_t offset, double beta) {
  check_float(weight, "weight must be float32");
  const BlockLayout layout = layout_of_weight(weight, m);
  KeyOptions o = key_options(m, n, kappa, rho, eta, seed, offset);
  o.absolute = true;
  if (logits.has_value()) check_columns(*logits, weight, m, "logits must be float32 [M, blocks]");
  Tensor masked = like_weight(weight, ScalarType::Float), mask = like_weight(weight, ScalarType::Byte);
  const BlockLayout out_layout = layout_of_weight(masked, m);
  auto* const bytes = static_cast<uint8_t*>(mask.data_ptr());
  Wrong wrong(m, layout.blocks());
  for_each_tile(m, layout.blocks(), [&](int64_t width) {
    return [&, width, from = column_tiles(logits, width), values = Tiles(layout, data_of(weight), width),
            to = Tiles(out_layout, data_of(masked), width),
            buffer = std::vector<uint8_t>(m * width)](int64_t first, int64_t count, int64_t tile) mutable {
      const KeyTile key = key_tile(from, values, first, count);
      wrong[tile] = topk_table().draw(o, {key, buffer.data(), width, key.anchor, key.anchor_stride,
                                          to.rows(first, count, false), to.stride(count), static_cast<float>(beta)});
      to.write(first, count);
      out_layout.scatter(buffer.data(), width, first, count, bytes);
    };
  });
  return {masked, mask, wrong.sum(weight)};
}

// Adam as torch.optim.Adam does it (Kingma and Ba 2015), `step` counting from 1.
UpdateOptions update_options(double temperature, double scale, double pull, bool pull_key, double learning_rate,
                             double beta1, double beta2, double epsilon, int64_t step, double decay) {
  const double correction1 = 1.0 - std::pow(beta1, static_cast<double>(step));
  const double correction2 = 1.0 - std::pow(beta2, static_cast<double>(step));
  return {static_cast<float>(1.0 / temperature), static_cast<float>(scale), static_cast<float>(pull), pull_key,
          static_cast<float>(1.0 - beta1), static_cast<float>(beta2), static_cast<float>(1.0 - beta2),
          static_cast<float>(1.0 / std::sqrt(correction2)), static_cast<float>(epsilon),
          static_cast<float>(learning_rate / correction1), static_cast<float>(decay)};
}

Tensor topk_update_logits(Tensor logits, Tensor exp_avg, Tensor exp_avg_sq, Tensor grad, Tensor weight,
                          OptionalTensor target, int64_t n, double kappa, double rho, double eta, int64_t seed,
                          int64_t offset, double temperature, double scale, double pull, bool pull_key,
                          double learning_rate, double beta1, double beta2, double epsilon, int64_t step,
                          double decay) {
  check_float(weight, "weight must be float32");
  check_float(grad, "grad must be float32");
  require(temperature > 0 && step >= 1, "temperature must be positive, step at least 1");
  const int64_t m = logits.size(0);
  for (const Tensor* t : {&logits, &exp_avg, &exp_avg_sq}) check_columns(*t, weight, m, "state must be float32 [M, blocks]");
  if (target.has_value()) check_columns(*target, weight, m, "target must be float32 [M, blocks]");
  const BlockLayout layout = layout_of_weight(weight, m), grad_layout = layout_of_weight(grad, m);
  require(grad_layout.rows == layout.rows && grad_layout.blocks() == layout.blocks(), "grad must be like weight");
  KeyOptions o = key_options(m, n, kappa, rho, eta, seed, offset);
  o.absolute = true;
  const UpdateOptions u = update_options(temperature, scale, pull, pull_key, learning_rate, beta1, beta2, epsilon, step,
                                         decay);
  Wrong wrong(m, layout.blocks());
  for_each_tile(m, layout.blocks(), [&](int64_t width) {
    return [&, pi = column_tiles(logits, width), avg = column_tiles(exp_avg, width),
            sq = column_tiles(exp_avg_sq, width), goal = column_tiles(target, width),
            values = Tiles(layout, data_of(weight), width),
            gradient = Tiles(grad_layout, data_of(grad), width)](int64_t first, int64_t count, int64_t tile) mutable {
      const KeyTile key = key_tile(pi, values, first, count);
      const UpdateTile t{key, const_cast<float*>(key.logits), avg.rows(first, count), sq.rows(first, count),
                         key.logits_stride, avg.stride(count), sq.stride(count), gradient.rows(first, count),
                         gradient.stride(count), goal.rows(first, count), goal.stride(count)};
      wrong[tile] = topk_table().update(o, u, t);
      pi.write(first, count);
      avg.write(first, count);
      sq.write(first, count);
      if (decay != 0.0) gradient.write(first, count);
    };
  });
  return wrong.sum(logits);
}

// Of a layer: [blocks whose fresh credit is not finite, which keep what they have; blocks with a credit above 0].
Tensor topk_update_credit(Tensor credit, Tensor targets, OptionalTensor fresh, OptionalTensor weight, double keep,
                          double temperature) {
  require(credit.dim() == 2 && credit.size(0) >= 2 && credit.size(0) <= kMaxPositions, "credit must be [M, blocks]");
  require(temperature > 0, "temperature must be positive");
  const int64_t m = credit.size(0), blocks = credit.size(1);
  for (const Tensor* t : {&credit, &targets}) {
    check_float(*t, "credit and targets must be float32");
    require(t->dim() == 2 && t->size(0) == m && t->size(1) == blocks, "targets must be like credit");
  }
  for (const OptionalTensor* t : {&fresh, &weight}) {
    if (t->has_value()) check_columns(credit, **t, m, "credit must be [M, blocks] of the weight");
  }
  const CreditOptions o{m, static_cast<float>(keep), static_cast<float>(1.0 - keep),
                        static_cast<float>(1.0 / temperature)};
  const int64_t tiles = (blocks + tile_width(m) - 1) / tile_width(m);
  std::vector<int64_t> nonzero(tiles), wrong(tiles);
  const auto weight_tiles = [m](const OptionalTensor& t, int64_t width) {
    return t.has_value() ? Tiles(layout_of_weight(*t, m), data_of(*t), width) : Tiles();
  };
  for_each_tile(m, blocks, [&](int64_t width) {
    return [&, mean = column_tiles(credit, width), goal = column_tiles(targets, width),
            seen = weight_tiles(fresh, width),
            values = weight_tiles(weight, width)](int64_t first, int64_t count, int64_t tile) mutable {
      const CreditTile t{seen.rows(first, count), seen.stride(count), values.rows(first, count), values.stride(count),
                         mean.rows(first, count), goal.rows(first, count, false), mean.stride(count),
                         goal.stride(count), count};
      wrong[tile] = topk_table().credit(o, t, &nonzero[tile]);
      if (seen) mean.write(first, count);
      goal.write(first, count);
    };
  });
  Tensor result = empty_strided(credit, {2}, {1}, ScalarType::Long);
  auto* const counts = static_cast<int64_t*>(result.data_ptr());
  counts[0] = counts[1] = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    counts[0] += wrong[i];
    counts[1] += nonzero[i];
  }
  return result;
}

// Standard deviation of |x| over all elements, in float64: [] .
Tensor absolute_deviation(Tensor x) {
  check_float(x, "x must be float32");
  std::vector<int64_t> size, stride;
  for (int64_t d = 0; d < x.dim(); ++d) {
    size.push_back(x.size(d));
    stride.push_back(x.stride(d));
  }
  require(x.numel() == 0 || is_dense(size, stride), "x must be dense");
  constexpr int64_t kPiece = 65536;
  const int64_t n = x.numel(), pieces = (n + kPiece - 1) / kPiece;
  std::vector<double> sums(2 * pieces);
  torch::stable::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      topk_table().moments(data_of(x) + i * kPiece, std::min(kPiece, n - i * kPiece), sums.data() + 2 * i);
    }
  });
  double first = 0, second = 0;
  for (int64_t i = 0; i < pieces; ++i) {
    first += sums[2 * i];
    second += sums[2 * i + 1];
  }
  const double count = static_cast<double>(n);
  Tensor result = empty_strided(x, {}, {}, ScalarType::Double);
  const double variance = (second - first * first / count) / (count - 1.0);
  *static_cast<double*>(result.data_ptr()) = variance < 0.0 ? 0.0 : std::sqrt(variance);  // NaN stays
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) {
  m.impl("topk_sample", TORCH_BOX(&topk_sample));
  m.impl("topk_sample_soft", TORCH_BOX(&topk_sample_soft));
  m.impl("topk_sample_backward", TORCH_BOX(&topk_sample_backward));
  m.impl("topk_mask_weight", TORCH_BOX(&topk_mask_weight));
  m.impl("topk_update_logits", TORCH_BOX(&topk_update_logits));
  m.impl("topk_update_credit", TORCH_BOX(&topk_update_credit));
  m.impl("absolute_deviation", TORCH_BOX(&absolute_deviation));
}

}  // namespace snn_core
