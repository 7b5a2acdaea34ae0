// Blocks of M neighbours to rows of positions and back, by shuffles of vectors. Included by topk_rows.cpp alone.
#pragma once

#include "native/vectors.h"

namespace snn_core {
namespace {

#if defined(__AVX512F__)
#define SNN_EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define SNN_ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define SNN_LOW_LANES 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SNN_HIGH_LANES 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define SNN_EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define SNN_ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#define SNN_LOW_LANES 0, 8, 1, 9, 2, 10, 3, 11
#define SNN_HIGH_LANES 4, 12, 5, 13, 6, 14, 7, 15
#else
#define SNN_EVEN_LANES 0, 2, 4, 6
#define SNN_ODD_LANES 1, 3, 5, 7
#define SNN_LOW_LANES 0, 4, 1, 5
#define SNN_HIGH_LANES 2, 6, 3, 7
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SNN_SHUFFLE(a, b, lanes) __builtin_shufflevector(a, b, lanes)
#else
#define SNN_SHUFFLE(a, b, lanes) __builtin_shuffle(a, b, VectorU{lanes})
#endif

// Each round moves the lowest bit of an element's index to the top: after log2(M) rounds vector i holds position i.
template <int kM>
SNN_VECTOR_INLINE void split_vectors(VectorU (&v)[kM]) {
#pragma GCC unroll 5
  for (int round = 1; round < kM; round *= 2) {
    VectorU next[kM];
#pragma GCC unroll 16
    for (int i = 0; i < kM / 2; ++i) {
      next[i] = SNN_SHUFFLE(v[2 * i], v[2 * i + 1], SNN_EVEN_LANES);
      next[kM / 2 + i] = SNN_SHUFFLE(v[2 * i], v[2 * i + 1], SNN_ODD_LANES);
    }
#pragma GCC unroll 32
    for (int i = 0; i < kM; ++i) v[i] = next[i];
  }
}

template <int kM>
SNN_VECTOR_INLINE void join_vectors(VectorU (&v)[kM]) {
#pragma GCC unroll 5
  for (int round = 1; round < kM; round *= 2) {
    VectorU next[kM];
#pragma GCC unroll 16
    for (int i = 0; i < kM / 2; ++i) {
      next[2 * i] = SNN_SHUFFLE(v[i], v[kM / 2 + i], SNN_LOW_LANES);
      next[2 * i + 1] = SNN_SHUFFLE(v[i], v[kM / 2 + i], SNN_HIGH_LANES);
    }
#pragma GCC unroll 32
    for (int i = 0; i < kM; ++i) v[i] = next[i];
  }
}

template <int kM>
void split_m(const float* blocks, int64_t count, float* rows, int64_t stride) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    VectorU v[kM];
#pragma GCC unroll 32
    for (int i = 0; i < kM; ++i) v[i] = load_unaligned<VectorU>(blocks + j * kM + i * kLanes);
    split_vectors<kM>(v);
#pragma GCC unroll 32
    for (int i = 0; i < kM; ++i) store_unaligned(rows + i * stride + j, v[i]);
  }
  for (; j < count; ++j) {
    for (int i = 0; i < kM; ++i) rows[i * stride + j] = blocks[j * kM + i];
  }
}

template <int kM>
void join_m(const float* rows, int64_t stride, int64_t count, float* blocks) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    VectorU v[kM];
#pragma GCC unroll 32
    for (int i = 0; i < kM; ++i) v[i] = load_unaligned<VectorU>(rows + i * stride + j);
    join_vectors<kM>(v);
#pragma GCC unroll 32
    for (int i = 0; i < kM; ++i) store_unaligned(blocks + j * kM + i * kLanes, v[i]);
  }
  for (; j < count; ++j) {
    for (int i = 0; i < kM; ++i) blocks[j * kM + i] = rows[i * stride + j];
  }
}

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

// Left to itself, the compiler widens byte after byte.
SNN_VECTOR_INLINE VectorU load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (VectorU)_mm512_cvtepu8_epi32((__m128i)load_unaligned<Bytes>(p));
#elif defined(__AVX2__)
  return (VectorU)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  return __builtin_convertvector(load_unaligned<Bytes>(p), VectorU);
#endif
}

// Four positions make a word, and words are joined as floats are.
template <int kM>
void join_bytes_m(const uint8_t* rows, int64_t stride, int64_t count, uint8_t* blocks) {
  int64_t j = 0;
  if constexpr (kM >= 4) {
    for (; j + kLanes <= count; j += kLanes) {
      VectorU v[kM / 4];
#pragma GCC unroll 8
      for (int q = 0; q < kM / 4; ++q) {
        v[q] = VectorU{};
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          v[q] |= load_bytes(rows + (4 * q + r) * stride + j) << (8 * r);
        }
      }
      join_vectors<kM / 4>(v);
#pragma GCC unroll 8
      for (int q = 0; q < kM / 4; ++q) store_unaligned(blocks + j * kM + 4 * q * kLanes, v[q]);
    }
  }
  for (; j < count; ++j) {
    for (int i = 0; i < kM; ++i) blocks[j * kM + i] = rows[i * stride + j];
  }
}

#define SNN_POWERS(function, ...)                     \
  switch (m) {                                        \
    case 2: return function<2>(__VA_ARGS__);          \
    case 4: return function<4>(__VA_ARGS__);          \
    case 8: return function<8>(__VA_ARGS__);          \
    case 16: return function<16>(__VA_ARGS__);        \
    default: return function<32>(__VA_ARGS__);        \
  }

void split_blocks(const float* blocks, int64_t m, int64_t count, float* rows, int64_t stride) {
  SNN_POWERS(split_m, blocks, count, rows, stride)
}
void join_blocks(const float* rows, int64_t stride, int64_t m, int64_t count, float* blocks) {
  SNN_POWERS(join_m, rows, stride, count, blocks)
}
void join_byte_blocks(const uint8_t* rows, int64_t stride, int64_t m, int64_t count, uint8_t* blocks) {
  SNN_POWERS(join_bytes_m, rows, stride, count, blocks)
}

}  // namespace
}  // namespace snn_core
