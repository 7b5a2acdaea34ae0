// Row kernels of the top-k sampler: tiles of neighbouring blocks, positions outermost, no allocation, no threads.
// Compiled once per instruction set (topk_rows.cpp); topk_sampler.cpp picks a table.
#pragma once

#include <cstdint>

#include "topk_sampler/topk_sampler.h"

namespace snn_core {

// Rows are read and written in whole vectors of up to this many blocks: a tile is a multiple of it, or is buffered.
constexpr int64_t kWidestVector = 16;

struct KeyOptions {
  int64_t m, n;
  float kappa, rho, eta;
  bool absolute;  // |anchor| in place of anchor
  uint64_t offset;
  PhiloxKeys keys;
};

// `count` blocks; row i of a tensor is at `pointer + i * stride`.
struct KeyTile {
  const float* logits;  // or null
  int64_t logits_stride;
  const float* anchor;  // or null; not both
  int64_t anchor_stride;
  int64_t first_block;
  int64_t count;
};

struct DrawTile {
  KeyTile key;
  uint8_t* mask;
  int64_t mask_stride;
  const float* weight;  // or null
  int64_t weight_stride;
  float* masked;
  int64_t masked_stride;
  float beta;  // factor of a dropped weight
};

struct SoftTile {
  KeyTile key;
  float reciprocal_temperature;
  const float* grad;  // backward alone
  int64_t grad_stride;
  float* out;
  int64_t out_stride;
};

struct UpdateOptions {
  float reciprocal_temperature;
  float scale;      // of the gradient through the mask
  float pull;       // of probability - target
  bool pull_key;    // the probability is that of the noise-free key, else of the logits
  float beta1_rest, beta2, beta2_rest, reciprocal_root, epsilon, step_size;  // Adam
  float decay;      // added to the gradient of a dropped weight, times the weight
};

struct UpdateTile {
  KeyTile key;  // its anchor is the weight
  float *logits, *exp_avg, *exp_avg_sq;
  int64_t logits_stride, avg_stride, sq_stride;
  float* grad;  // of the weight
  int64_t grad_stride;
  const float* target;  // or null
  int64_t target_stride;
};

struct CreditOptions {
  int64_t m;
  float keep, share;  // of the old credit and of the fresh one
  float reciprocal_temperature;
};

struct CreditTile {
  const float* fresh;  // with its sign, or null
  int64_t fresh_stride;
  const float* weight;  // a factor of it, or null
  int64_t weight_stride;
  float *credit, *target;
  int64_t credit_stride, target_stride;
  int64_t count;
};

struct TopkTable {
  // Return how many blocks hold a value that is not finite; such blocks are not updated.
  int64_t (*draw)(const KeyOptions&, const DrawTile&);
  void (*soft)(const KeyOptions&, const SoftTile&);
  void (*soft_backward)(const KeyOptions&, const SoftTile&);
  int64_t (*update)(const KeyOptions&, const UpdateOptions&, const UpdateTile&);
  int64_t (*credit)(const CreditOptions&, const CreditTile&, int64_t* nonzero);  // adds blocks whose credit is not 0
  // Blocks of m = 2, 4, 8, 16 or 32 neighbours to rows and back.
  void (*split)(const float* blocks, int64_t m, int64_t count, float* rows, int64_t stride);
  void (*join)(const float* rows, int64_t stride, int64_t m, int64_t count, float* blocks);
  void (*join_bytes)(const uint8_t* rows, int64_t stride, int64_t m, int64_t count, uint8_t* blocks);
  void (*moments)(const float* x, int64_t n, double* sums);  // of |x| and x^2; the order of additions is fixed
};

extern const TopkTable topk_baseline;
#if defined(SNN_HAS_AVX2)
extern const TopkTable topk_avx2;
#endif
#if defined(SNN_HAS_AVX512)
extern const TopkTable topk_avx512;
#endif

}  // namespace snn_core
