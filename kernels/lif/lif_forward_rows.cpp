// Forward row kernels: four time steps at once with the state of 4 vectors in registers, so that the state is read and
// written once in four steps and several rows are in flight (docs/notes/lif.md has the measurements).

#include "lif/lif_rows.h"
#include "native/vectors.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

constexpr int kTileSteps = 4;
constexpr int kTileVectors = 4;

// What is written of the elements from i on, in one step.
template <bool kStream, class T>
struct SpikeWriter {
  using Element = T;
  template <class F, int kVectors>
  static SNN_VECTOR_INLINE void write(T* row, int64_t i, const F (&h)[kVectors], const LifParameters& p) {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      store_spikes<kStream, F>(row + i + k * LaneTraits<F>::lanes, h[k] >= p.v_threshold);
    }
  }
};

struct HistoryWriter {
  using Element = float;
  template <class F, int kVectors>
  static SNN_VECTOR_INLINE void write(float* row, int64_t i, const F (&h)[kVectors], const LifParameters&) {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) store<false>(row + i + k * LaneTraits<F>::lanes, h[k]);
  }
};

// Eight spikes a byte; i and the number of elements are multiples of 8.
struct BitWriter {
  using Element = uint8_t;
  template <class F, int kVectors>
  static SNN_VECTOR_INLINE void write(uint8_t* row, int64_t i, const F (&h)[kVectors], const LifParameters& p) {
    constexpr int count = kVectors * kLanes;
    uint64_t word = 0;
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      word |= static_cast<uint64_t>(lane_bits(h[k] >= p.v_threshold)) << (k * kLanes);
    }
#pragma GCC unroll 8
    for (int byte = 0; byte < count / 8; ++byte) row[i / 8 + byte] = static_cast<uint8_t>(word >> (8 * byte));
  }
};

// Vectors of F at element i through kSteps time steps.
template <class Body, class Writer, class F, int kVectors, int kSteps, class X>
SNN_VECTOR_INLINE void advance(const X* x, int64_t x_stride, typename Writer::Element* out, int64_t out_stride,
                               float* v, int64_t i, const LifParameters& p) {
  constexpr int lanes = LaneTraits<F>::lanes;
  F state[kVectors], h[kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) state[k] = load<F>(v + i + k * lanes);
#pragma GCC unroll 4
  for (int t = 0; t < kSteps; ++t) {
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      h[k] = Body::charge(load<F>(x + t * x_stride + i + k * lanes), state[k], p);
      state[k] = Body::reset(h[k], p);
    }
    Writer::template write<F, kVectors>(out + t * out_stride, i, h, p);
  }
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) store<false>(v + i + k * lanes, state[k]);
}

// One step of elements first .. n: what the tiles leave over.
template <class Body, class Writer, class X, class Element>
SNN_VECTOR_INLINE void advance_row(const X* x, Element* out, float* v, int64_t first, int64_t n,
                                   const LifParameters& p) {
  int64_t i = first;
  for (; i + kLanes <= n; i += kLanes) advance<Body, Writer, VectorF, 1, 1>(x, 0, out, 0, v, i, p);
  for (; i < n; ++i) advance<Body, Writer, float, 1, 1>(x, 0, out, 0, v, i, p);
}

// The same for bits: vectors of whole bytes, then byte by byte.
struct BitRest {};
template <class Body, class Writer, class X>
  requires __is_same(Writer, BitRest)
SNN_VECTOR_INLINE void advance_row(const X* x, uint8_t* out, float* v, int64_t first, int64_t n,
                                   const LifParameters& p) {
  constexpr int vectors = kLanes >= 8 ? 1 : 8 / kLanes;
  int64_t i = first;
  for (; i + vectors * kLanes <= n; i += vectors * kLanes) {
    advance<Body, BitWriter, VectorF, vectors, 1>(x, 0, out, 0, v, i, p);
  }
  for (; i < n; i += 8) {
    uint32_t byte = 0;
    for (int64_t j = 0; j < 8 && i + j < n; ++j) {
      const float h = Body::charge(load<float>(x + i + j), v[i + j], p);
      byte |= static_cast<uint32_t>(h >= p.v_threshold) << j;
      v[i + j] = Body::reset(h, p);
    }
    out[i / 8] = static_cast<uint8_t>(byte);
  }
}

template <class Body, class TileWriter, class RestWriter, class X>
SNN_VECTOR_INLINE void all_steps(const ForwardRows& r, LifParameters p) {
  constexpr int strip = kTileVectors * kLanes;
  const X* x = static_cast<const X*>(r.x);
  auto* out = static_cast<typename TileWriter::Element*>(r.out);
  const int64_t tiled = r.n - r.n % strip;
  int64_t t = 0;
  for (; t + kTileSteps <= r.steps; t += kTileSteps) {
    const X* x_tile = x + t * r.x_stride;
    auto* out_tile = out + t * r.out_stride;
    for (int64_t i = 0; i < tiled; i += strip) {
      advance<Body, TileWriter, VectorF, kTileVectors, kTileSteps>(x_tile, r.x_stride, out_tile, r.out_stride, r.v, i,
                                                                   p);
    }
    for (int row = 0; tiled < r.n && row < kTileSteps; ++row) {
      advance_row<Body, RestWriter>(x_tile + row * r.x_stride, out_tile + row * r.out_stride, r.v, tiled, r.n, p);
    }
  }
  for (; t < r.steps; ++t) {
    int64_t first = 0;
    if constexpr (__is_same(RestWriter, BitRest)) {
      for (; first < tiled; first += strip) {
        advance<Body, TileWriter, VectorF, kTileVectors, 1>(x + t * r.x_stride, 0, out + t * r.out_stride, 0, r.v,
                                                            first, p);
      }
    }
    advance_row<Body, RestWriter>(x + t * r.x_stride, out + t * r.out_stride, r.v, first, r.n, p);
  }
}

template <bool kDecayInput, bool kDivide, bool kSoftReset>
struct Body {
  template <class F>
  static SNN_VECTOR_INLINE F charge(F x, F v, const LifParameters& p) {
    return lif_charge<kDecayInput, kDivide>(x, v, p);
  }
  template <class F>
  static SNN_VECTOR_INLINE F reset(F h, const LifParameters& p) {
    return lif_reset<kSoftReset>(h, p);
  }
};

template <class B, class X>
void spikes(const ForwardRows& r, const LifParameters& p) {
  if (r.stream) {
    all_steps<B, SpikeWriter<true, X>, SpikeWriter<false, X>, X>(r, p);
    stream_fence();
  } else {
    all_steps<B, SpikeWriter<false, X>, SpikeWriter<false, X>, X>(r, p);
  }
}

template <class B, class X>
void history(const ForwardRows& r, const LifParameters& p) {
  all_steps<B, HistoryWriter, HistoryWriter, X>(r, p);
}

template <class B, class X>
void bits(const ForwardRows& r, const LifParameters& p) {
  all_steps<B, BitWriter, BitRest, X>(r, p);
}

#define SNN_VARIANTS(kernel, X)                                                          \
  {                                                                                      \
    {{kernel<Body<false, false, false>, X>, kernel<Body<false, false, true>, X>},        \
     {kernel<Body<false, true, false>, X>, kernel<Body<false, true, true>, X>}},         \
    {                                                                                    \
      {kernel<Body<true, false, false>, X>, kernel<Body<true, false, true>, X>}, {       \
        kernel<Body<true, true, false>, X>, kernel<Body<true, true, true>, X>            \
      }                                                                                  \
    }                                                                                    \
  }
#define SNN_STORAGES(kernel) \
  { SNN_VARIANTS(kernel, float), SNN_VARIANTS(kernel, Bf16), SNN_VARIANTS(kernel, Fp16) }

}  // namespace

extern const LifForwardTable SNN_CONCAT(lif_forward_, SNN_ISA) = {SNN_STORAGES(spikes), SNN_STORAGES(bits),
                                                                  SNN_STORAGES(history)};

}  // namespace snn_core
