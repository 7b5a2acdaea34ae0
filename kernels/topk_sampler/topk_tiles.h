// How tensors that hold a value for every position of every block are walked: in tiles of neighbouring blocks with
// positions outermost, in place where they lie so, else through a buffer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "native/cpu_features.h"
#include "native/tensors.h"
#include "topk_sampler/topk_rows.h"

namespace snn_core {

inline const TopkTable& topk_table() { SNN_PICK(topk) }

constexpr int64_t kTileElements = 4096;

// Blocks in the order (row, pair, inner): element i of block (r, p, k) lies at r * row + p * pair + i * position +
// k * step. Of a weight [O, C, *kernel]: output channel, group of M input channels, kernel position.
struct BlockLayout {
  int64_t m = 1, rows = 1, pairs = 1, inner = 1;
  int64_t row = 0, pair = 0, position = 0, step = 1;

  int64_t blocks() const { return rows * pairs * inner; }
  bool position_major() const { return rows * pairs == 1 && step == 1; }
  // Block after block in memory, positions innermost, in a number that the shuffles know.
  bool block_major() const {
    return inner == 1 && position == 1 && pair == m && (rows == 1 || row == pairs * m) &&
           (m == 2 || m == 4 || m == 8 || m == 16 || m == 32);
  }

  // Calls copy(offset of the first element, blocks from the tile's first, blocks) for every run of `inner`.
  template <class Copy>
  void for_each_run(int64_t first, int64_t count, Copy copy) const {
    int64_t done = 0, index = first / inner, k = first % inner;
    int64_t r = index / pairs, p = index % pairs;
    while (done < count) {
      const int64_t here = std::min(inner - k, count - done);
      copy(r * row + p * pair + k * step, done, here);
      done += here;
      k = 0;
      if (++p == pairs) {
        p = 0;
        ++r;
      }
    }
  }

  void gather(const float* data, int64_t first, int64_t count, float* buffer, int64_t width) const {
    if (block_major()) return topk_table().split(data + first * m, m, count, buffer, width);
    for_each_run(first, count, [&](int64_t offset, int64_t at, int64_t here) {
      for (int64_t i = 0; i < m; ++i) {
        const float* const source = data + offset + i * position;
        float* const target = buffer + i * width + at;
        if (step == 1) {
          copy_run(source, target, here);
        } else {
          for (int64_t k = 0; k < here; ++k) target[k] = source[k * step];
        }
      }
    });
  }

  template <class T>
  void scatter(const T* buffer, int64_t width, int64_t first, int64_t count, T* data) const {
    if (block_major()) {
      if constexpr (sizeof(T) == 1) return topk_table().join_bytes(buffer, width, m, count, data + first * m);
      if constexpr (sizeof(T) == 4) return topk_table().join(buffer, width, m, count, data + first * m);
    }
    for_each_run(first, count, [&](int64_t offset, int64_t at, int64_t here) {
      for (int64_t i = 0; i < m; ++i) {
        const T* const source = buffer + i * width + at;
        T* const target = data + offset + i * position;
        if (step == 1) {
          copy_run(source, target, here);
        } else {
          for (int64_t k = 0; k < here; ++k) target[k * step] = source[k];
        }
      }
    });
  }

 private:
  // Runs are short (9 of a 3 x 3 kernel): constant sizes are moves, a call of memcpy is many times as long.
  template <class T>
  static void copy_run(const T* source, T* target, int64_t count) {
    switch (count) {
      case 1: *target = *source; return;
      case 9: std::memcpy(target, source, 9 * sizeof(T)); return;
      case 3: std::memcpy(target, source, 3 * sizeof(T)); return;
      case 25: std::memcpy(target, source, 25 * sizeof(T)); return;
      default: std::memcpy(target, source, count * sizeof(T));
    }
  }
};

inline void require(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(std::string("topk_sampler: ") + what);
}

// [blocks, M]
inline BlockLayout layout_of_blocks(const Tensor& t) {
  BlockLayout layout;
  layout.m = t.size(1);
  layout.position = t.stride(1);
  if (t.stride(0) == 1) {
    layout.inner = t.size(0);
  } else {
    layout.pairs = t.size(0);
    layout.pair = t.stride(0);
  }
  return layout;
}

// [M, blocks]
inline BlockLayout layout_of_columns(const Tensor& t) {
  BlockLayout layout;
  layout.m = t.size(0);
  layout.position = t.stride(0);
  layout.inner = t.size(1);
  layout.step = t.size(1) == 1 ? 1 : t.stride(1);
  return layout;
}

// [O, C, *kernel], blocks of M along C.
inline BlockLayout layout_of_weight(const Tensor& t, int64_t m) {
  require(t.dim() >= 2 && t.dim() <= 4 && m >= 1 && t.size(1) % m == 0, "weight must be [O, C, *kernel], C a multiple of m");
  BlockLayout layout;
  layout.m = m;
  layout.rows = t.size(0);
  layout.row = t.stride(0);
  layout.pairs = t.size(1) / m;
  layout.pair = m * t.stride(1);
  layout.position = t.stride(1);
  for (int64_t d = 2; d < t.dim(); ++d) {
    if (t.size(d) == 1) continue;
    require(layout.inner == 1 || layout.step == t.size(d) * t.stride(d), "the kernel's dimensions of weight must merge");
    layout.inner *= t.size(d);
    layout.step = t.stride(d);
  }
  return layout;
}

// One tensor of a call, tile by tile.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const BlockLayout& layout, float* data, int64_t width)
      : layout_(layout), data_(data), width_(width), direct_(layout.position_major()),
        buffer_(data == nullptr ? 0 : layout.m * width) {}

  explicit operator bool() const { return data_ != nullptr; }

  // The tile's values, or null; to be written where `fill` is off.
  float* rows(int64_t first, int64_t count, bool fill = true) {
    if (data_ == nullptr) return nullptr;
    if (in_place(count)) return data_ + first;
    if (fill) layout_.gather(data_, first, count, buffer_.data(), width_);
    return buffer_.data();
  }
  int64_t stride(int64_t count) const { return in_place(count) ? layout_.position : width_; }
  // Writes back what rows() gave, where that was the buffer.
  void write(int64_t first, int64_t count) {
    if (data_ != nullptr && !in_place(count)) layout_.scatter(buffer_.data(), width_, first, count, data_);
  }

 private:
  bool in_place(int64_t count) const { return direct_ && count % kWidestVector == 0; }

  BlockLayout layout_;
  float* data_ = nullptr;
  int64_t width_ = 0;
  bool direct_ = false;
  std::vector<float> buffer_;
};

// A pure function of the shape: what a tile computes does not depend on the number of threads.
inline int64_t tile_width(int64_t m) { return std::max<int64_t>(kWidestVector, kTileElements / m / 16 * 16); }

}  // namespace snn_core
