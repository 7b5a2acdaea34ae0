// Bodies of row_tools.h.

#include "native/row_tools.h"

#include "native/vectors.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

template <class X>
void to_float(const void* source, float* target, int64_t n) {
  const X* from = static_cast<const X*>(source);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store<false>(target + i, load<VectorF>(from + i));
  for (; i < n; ++i) target[i] = load<float>(from + i);
}

template <class X>
void from_float(const float* source, void* target, int64_t n) {
  X* to = static_cast<X*>(target);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store<false>(to + i, load<VectorF>(source + i));
  for (; i < n; ++i) store<false>(to + i, source[i]);
}

template <class X>
void add(const void* source, float* target, int64_t n) {
  const X* from = static_cast<const X*>(source);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store<false>(target + i, load<VectorF>(target + i) + load<VectorF>(from + i));
  for (; i < n; ++i) target[i] += load<float>(from + i);
}

void stream(const float* source, float* target, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store<true>(target + i, load<VectorF>(source + i));
  for (; i < n; ++i) target[i] = source[i];
  stream_fence();
}

void fill(float value, float* target, int64_t n) {
  const VectorF many = VectorF{} + value;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store<false>(target + i, many);
  for (; i < n; ++i) target[i] = value;
}

template <class X>
void pack(const void* source, uint8_t* target, int64_t n) {
  constexpr int group = kLanes < 8 ? 8 : kLanes;
  const X* from = static_cast<const X*>(source);
  int64_t i = 0;
  for (; i + group <= n; i += group) {
    uint32_t word = 0;
    for (int k = 0; k < group / kLanes; ++k) {
      word |= lane_bits(load<VectorF>(from + i + k * kLanes) != 0.0f) << (k * kLanes);
    }
    for (int byte = 0; byte < group / 8; ++byte) target[i / 8 + byte] = static_cast<uint8_t>(word >> (8 * byte));
  }
  for (; i < n; i += 8) {
    uint32_t byte = 0;
    for (int64_t j = 0; j < 8 && i + j < n; ++j) byte |= static_cast<uint32_t>(load<float>(from + i + j) != 0.0f) << j;
    target[i / 8] = static_cast<uint8_t>(byte);
  }
}

template <class X>
void unpack(const uint8_t* source, void* target, int64_t n) {
  X* to = static_cast<X*>(target);
  VectorU lane;
  for (int k = 0; k < kLanes; ++k) lane[k] = 1u << k;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    uint32_t word = static_cast<uint32_t>(source[i / 8]) >> (i % 8);
    if (kLanes > 8) word |= static_cast<uint32_t>(source[i / 8 + 1]) << 8;
    store_spikes<false, VectorF>(to + i, ((VectorU{} + word) & lane) != 0u);
  }
  for (; i < n; ++i) store_spikes<false, float>(to + i, (source[i / 8] >> (i % 8) & 1) != 0);
}

// Without the instruction (in the baseline) this is a function call a word.
int64_t count(const uint8_t* bits, int64_t bytes) {
  int64_t sums[4] = {0, 0, 0, 0}, i = 0;
  for (; i + 32 <= bytes; i += 32) {
    for (int k = 0; k < 4; ++k) {
      uint64_t word;
      __builtin_memcpy(&word, bits + i + 8 * k, 8);
      sums[k] += __builtin_popcountll(word);
    }
  }
  for (; i < bytes; ++i) sums[0] += __builtin_popcount(bits[i]);
  return sums[0] + sums[1] + sums[2] + sums[3];
}

#define SNN_STORAGES(kernel) \
  { kernel<float>, kernel<Bf16>, kernel<Fp16> }

}  // namespace

extern const RowTools SNN_CONCAT(row_tools_, SNN_ISA) = {SNN_STORAGES(to_float), SNN_STORAGES(from_float),
                                                         SNN_STORAGES(add), stream, fill,
                                                         SNN_STORAGES(pack), SNN_STORAGES(unpack), count};

}  // namespace snn_core
