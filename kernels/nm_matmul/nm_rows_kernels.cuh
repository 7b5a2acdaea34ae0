// Device text of dense activations x compressed weight for few rows, without tensor cores: a warp has an output or two,
// its threads parts of K. What counts is to read the weight once and in wide accesses; sums are float32.
#pragma once

#include "native/device_block.h"
#include "nm_matmul/nm_elements.cuh"

namespace snn_core {

SNN_DEVICE float multiply_add(float a, float b, float c) {
#if defined(SNN_EMULATED)
  return __builtin_fmaf(a, b, c);
#else
  return __fmaf_rn(a, b, c);
#endif
}

// In a fixed order.
SNN_DEVICE float sum_of_warp(float value) {
  SNN_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

SNN_DEVICE void write_row_sum(const RowsArguments& a, int64_t row, int64_t output, int type, float sum) {
  if (a.scale != nullptr) sum *= a.scale[output];
  if (a.bias != nullptr) sum += a.bias[output];
  write_element(a.out, row * a.outputs + output, type, sum);
}

// Any pattern, any types: a thread takes every 32nd block.
template <int kType, int kXType, int kRows>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kRowsThreads, 2) nm_rows_kernel(SNN_GRID_CONSTANT RowsArguments a) {
  constexpr int kWarps = kRowsThreads / kWarp;
  const int64_t bands = (a.rows + kRows - 1) / kRows, tasks = bands * a.outputs, each = a.k / a.m;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + warp_of_block();
  SNN_NO_UNROLL
  for (int64_t task = first; task < tasks; task += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t band = task / a.outputs, output = task - band * a.outputs;
    float sum[kRows] = {};
    SNN_NO_UNROLL
    for (int64_t block = lane_of_warp(); block < each; block += kWarp) {
      SNN_NO_UNROLL
      for (int j = 0; j < a.n; ++j) {
        const int64_t at = (output * each + block) * a.n + j;
        const int position = read_position(a.indices, a.index_bytes, at, a.bits);
        const int64_t k = block * a.m + (position < a.m ? position : a.m - 1);  // never past x, whatever the indices say
        const float weight = read_element(a.values, at, kType);
        SNN_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const int64_t row = band * kRows + r < a.rows ? band * kRows + r : a.rows - 1;
          sum[r] = multiply_add(weight, read_element(a.x, row * a.k + k, kXType), sum[r]);
        }
      }
    }
    SNN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float total = sum_of_warp(sum[r]);
      if (lane_of_warp() == 0 && band * kRows + r < a.rows) write_row_sum(a, band * kRows + r, output, kXType, total);
    }
  }
}

template <int kWords>
struct alignas(kWords * 4) WordsOf {
  uint32_t word[kWords];
};

template <int kXType>
SNN_DEVICE float lower_of(uint32_t word) {
  return kXType == kCudaBFloat16 ? BFloat16::lower(word) : Float16::lower(word);
}
template <int kXType>
SNN_DEVICE float upper_of(uint32_t word) {
  return kXType == kCudaBFloat16 ? BFloat16::upper(word) : Float16::upper(word);
}

// Bytes of {low, high} by the selector's digits, as PRMT does it.
SNN_DEVICE uint32_t select_bytes(uint32_t low, uint32_t high, uint32_t selector) {
#if defined(SNN_EMULATED)
  const uint64_t both = low | static_cast<uint64_t>(high) << 32;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * i & 7u) & 0xffu) << 8 * i;
  return result;
#else
  return __byte_perm(low, high, selector);
#endif
}

// Values 2 i and 2 i + 1 of eight.
template <int kType, int kWords>
SNN_DEVICE void two_values(const WordsOf<kWords>& values, int i, float& first, float& second) {
  if constexpr (kCudaTypeBytes[kType] == 2) {
    first = lower_of<kType>(values.word[i]);
    second = upper_of<kType>(values.word[i]);
  } else {
    const uint32_t pair = values.word[i / 2] >> (i % 2 * 16);
    if constexpr (kType == kCudaInt8) {
      first = static_cast<float>(static_cast<int8_t>(pair));
      second = static_cast<float>(static_cast<int8_t>(pair >> 8));
    } else {
      first = float_of_e4m3(pair & 0xffu);
      second = float_of_e4m3(pair >> 8 & 0xffu);
    }
  }
}

// 2:4 and 16-bit x. A thread takes 16 columns at a time: 8 values, 8 positions (16 bits) and, of each row, 32 bytes of
// x, of which one instruction picks the two elements that a block keeps. Two outputs a warp share what is read of x.
template <int kType, int kXType, int kRows>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kRowsThreads, 2) nm_rows_wide_kernel(SNN_GRID_CONSTANT RowsArguments a) {
  constexpr int kWarps = kRowsThreads / kWarp, kOutputs = 2;
  using Values = WordsOf<kCudaTypeBytes[kType] * 2>;
  using Half = WordsOf<4>;
  const int64_t bands = (a.rows + kRows - 1) / kRows, pairs = (a.outputs + 1) / 2, each = a.k / 16;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + warp_of_block();
  SNN_NO_UNROLL
  for (int64_t task = first; task < bands * pairs; task += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t band = task / pairs, output = (task - band * pairs) * 2;
    float sum[kOutputs][kRows] = {};
    SNN_NO_UNROLL
    for (int64_t group = lane_of_warp(); group < each; group += kWarp) {
      Values values[kOutputs];
      uint32_t positions[kOutputs];
      SNN_UNROLL
      for (int o = 0; o < kOutputs; ++o) {
        const int64_t at = (output + o < a.outputs ? output + o : output) * each + group;
        check_aligned(static_cast<const Values*>(a.values) + at, alignof(Values));
        values[o] = static_cast<const Values*>(a.values)[at];
        positions[o] = reinterpret_cast<const uint16_t*>(a.indices)[at];
      }
      Half x[kRows][2];
      SNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int64_t row = band * kRows + r < a.rows ? band * kRows + r : a.rows - 1;
        const auto* source = static_cast<const Half*>(a.x) + (row * a.k / 16 + group) * 2;
        check_aligned(source, alignof(Half));
        x[r][0] = source[0];
        x[r][1] = source[1];
      }
      SNN_UNROLL
      for (int block = 0; block < 4; ++block) {
        SNN_UNROLL
        for (int o = 0; o < kOutputs; ++o) {
          const uint32_t pair = positions[o] >> 4 * block & 15u;
          // Bytes 2 p and 2 p + 1 of either position.
          const uint32_t selector = (pair & 3u) * 0x22u + (pair >> 2) * 0x2200u + 0x1010u;
          float low, high;
          two_values<kType>(values[o], block, low, high);
          SNN_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const Half& half = x[r][block / 2];
            const uint32_t kept = select_bytes(half.word[block % 2 * 2], half.word[block % 2 * 2 + 1], selector);
            sum[o][r] = multiply_add(low, lower_of<kXType>(kept), sum[o][r]);
            sum[o][r] = multiply_add(high, upper_of<kXType>(kept), sum[o][r]);
          }
        }
      }
    }
    SNN_UNROLL
    for (int o = 0; o < kOutputs; ++o) {
      SNN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const float total = sum_of_warp(sum[o][r]);
        const bool there = output + o < a.outputs && band * kRows + r < a.rows;
        if (lane_of_warp() == 0 && there) write_row_sum(a, band * kRows + r, output + o, kXType, total);
      }
    }
  }
}

}  // namespace snn_core
