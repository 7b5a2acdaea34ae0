// Output by output: the inputs of a window that are not zero are the ones of a word, their weight rows are added up in
// registers, and so the neuron is run through the time steps. Neither currents nor potentials touch memory on the way.
// Multiplication and addition are separate, so that every instruction set gives the same bits.

#include "frame_conv/window_rows.h"

#include "frame_conv/nonzero.h"
#include "native/vectors.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

typedef uint64_t Words __attribute__((vector_size(8 * kWindowGroup)));

template <class T>
SNN_VECTOR_INLINE uint64_t nonzero(const T* row, int64_t stride, int64_t count) {
#if defined(__AVX512BW__)
  if (stride == 1) {
    const uint64_t there = ~uint64_t{0} >> (64 - count);
    if constexpr (sizeof(T) == 1) {
      const __m512i bytes = _mm512_maskz_loadu_epi8(there, row);
      return _mm512_test_epi8_mask(bytes, bytes);
    } else {
      uint64_t mask = 0;
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        const __m512 x = _mm512_maskz_loadu_ps(static_cast<__mmask16>(there >> 16 * k), row + 16 * k);
        mask |= static_cast<uint64_t>(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ)) << 16 * k;
      }
      return mask;
    }
  }
#endif
  return nonzero_inputs(row, stride, count);
}

// The bits of all input rows that the task sees, shifted by the padding.
template <class T>
void read_inputs(const WindowTask& r) {
  const int64_t rows = r.input_rows(), bytes = r.input_bytes(), top = r.first_row * r.stride_h - r.pad_h;
  const bool all = r.counts && r.table[0] != 0.0f;
  uint8_t* out = r.inputs;
  __builtin_memset(out, 0, r.steps * r.channels * rows * bytes);
  for (int64_t t = 0; t < r.steps; ++t) {
    for (int64_t c = 0; c < r.channels; ++c) {
      for (int64_t y = top; y < top + rows; ++y, out += bytes) {
        if (y < 0 || y >= r.height) continue;
        const T* const row = static_cast<const T*>(r.x) + t * r.t_stride + c * r.c_stride + y * r.y_stride;
        for (int64_t x = 0; x < r.width; x += 64) {
          const int64_t count = r.width - x < 64 ? r.width - x : 64;
          const uint64_t there = ~uint64_t{0} >> (64 - count);
          const uint64_t mask = all ? there : nonzero(row + x * r.x_stride, r.x_stride, count);
          uint8_t* const place = out + (x + r.pad_w) / 8;
          const int64_t shift = r.pad_w % 8;
          store_unaligned(place, load_unaligned<uint64_t>(place) | mask << shift);
          if (shift != 0) place[8] |= static_cast<uint8_t>(mask >> (64 - shift));
        }
      }
    }
  }
}

// The words of the windows of an output row.
SNN_VECTOR_INLINE void cut_windows(const WindowTask& r, int64_t output_row) {
  const int64_t rows = r.input_rows(), bytes = r.input_bytes(), columns = r.mask_columns();
  const uint64_t ones = ~uint64_t{0} >> (64 - r.kernel_w);
  const Words lane = {0, 1, 2, 3, 4, 5, 6, 7};
  const Words shift = lane * static_cast<uint64_t>(r.stride_w);
  const uint8_t* const first = r.inputs + (output_row - r.first_row) * r.stride_h * bytes;
  for (int64_t t = 0; t < r.steps; ++t) {
    for (int64_t group = 0; group < columns / kWindowGroup; ++group) {
      Words mask{};
      uint64_t position = 0;
      for (int64_t c = 0; c < r.channels; ++c) {
        const uint8_t* row = first + (t * r.channels + c) * rows * bytes + group * r.stride_w;
        for (int64_t i = 0; i < r.kernel_h; ++i, row += r.dilation_h * bytes, position += r.kernel_w) {
          const Words word = Words{} + load_unaligned<uint64_t>(row);
          mask |= (word >> shift & ones) << position;
        }
      }
      store_unaligned(r.masks + t * columns + group * kWindowGroup, mask);
    }
  }
}

template <class T>
SNN_VECTOR_INLINE float value_of(const WindowTask& r, T input) {
  if constexpr (sizeof(T) == 1) return r.table[input];
  return static_cast<float>(input);
}

template <bool kDecayInput, bool kDivide, bool kSoftReset>
struct Neuron {
  static SNN_VECTOR_INLINE VectorF charge(VectorF x, VectorF v, const LifParameters& p) {
    return lif_charge<kDecayInput, kDivide>(x, v, p);
  }
  static SNN_VECTOR_INLINE VectorF reset(VectorF h, const LifParameters& p) { return lif_reset<kSoftReset>(h, p); }
};

// Outputs from `output` on, kVectors vectors of them, of a row of pixels.
template <class N, int kVectors, class T>
SNN_VECTOR_INLINE void run_row(const WindowTask& r, const LifParameters& p, int64_t output_row, int64_t output) {
  const int64_t columns = r.mask_columns(), place = (output_row - r.first_row) * r.columns;
  const int64_t corner = (output_row * r.stride_h - r.pad_h) * r.y_stride - r.pad_w * r.x_stride;
  const float* const weight = r.weight + output;
  VectorF bias[kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) bias[k] = load<VectorF>(r.bias + output + k * kLanes);
  for (int64_t column = 0; column < r.columns; ++column) {
    float* const v = r.v + (place + column) * r.outputs + output;
    uint8_t* const bits = r.bits + ((place + column) * r.outputs + output) / 8;
    VectorF state[kVectors];
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) state[k] = load<VectorF>(v + k * kLanes);
    for (int64_t t = 0; t < r.steps; ++t) {
      const int64_t first = t * r.t_stride + corner + column * r.stride_w * r.x_stride;
      VectorF sum[kVectors];
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) sum[k] = bias[k];
      for (uint64_t mask = r.masks[t * columns + column]; mask != 0; mask &= mask - 1) {
        const int64_t input = __builtin_ctzll(mask);
        const VectorF x = VectorF{} + value_of(r, static_cast<const T*>(r.x)[first + r.offset[input]]);
        const float* const w = weight + input * r.outputs;
#pragma GCC unroll 4
        for (int k = 0; k < kVectors; ++k) sum[k] += x * load<VectorF>(w + k * kLanes);
      }
      uint64_t word = 0;
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) {
        const VectorF h = N::charge(sum[k], state[k], p);
        word |= static_cast<uint64_t>(lane_bits(h >= p.v_threshold)) << (k * kLanes);
        state[k] = N::reset(h, p);
      }
      // (little-endian, as everywhere where bits are read as words)
      __builtin_memcpy(bits + t * r.bits_stride, &word, kVectors * kLanes / 8);
    }
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) store<false>(v + k * kLanes, state[k]);
  }
}

template <class N, class T>
void run_task(const WindowTask& r, const LifParameters& p) {
  constexpr int64_t widest = 4 * kLanes, half = 2 * kLanes;
  read_inputs<T>(r);
  for (int64_t row = r.first_row; row < r.last_row; ++row) {
    cut_windows(r, row);
    int64_t output = 0;
    for (; output + widest <= r.outputs; output += widest) run_row<N, 4, T>(r, p, row, output);
    for (; output + half <= r.outputs; output += half) run_row<N, 2, T>(r, p, row, output);
    if constexpr (kLanes >= 8) {
      for (; output < r.outputs; output += kLanes) run_row<N, 1, T>(r, p, row, output);
    }
  }
}

template <class N>
void run_neuron(const WindowTask& r, const LifParameters& p) {
  r.counts ? run_task<N, uint8_t>(r, p) : run_task<N, float>(r, p);
}

void run(const WindowTask& r, const LifParameters& p, const LifVariant& variant) {
  static constexpr void (*kVariants[2][2][2])(const WindowTask&, const LifParameters&) = {
      {{run_neuron<Neuron<false, false, false>>, run_neuron<Neuron<false, false, true>>},
       {run_neuron<Neuron<false, true, false>>, run_neuron<Neuron<false, true, true>>}},
      {{run_neuron<Neuron<true, false, false>>, run_neuron<Neuron<true, false, true>>},
       {run_neuron<Neuron<true, true, false>>, run_neuron<Neuron<true, true, true>>}}};
  kVariants[variant.decay_input][variant.divide][variant.soft_reset](r, p);
}

}  // namespace

extern const WindowKernel SNN_CONCAT(window_rows_, SNN_ISA) = run;

}  // namespace snn_core
