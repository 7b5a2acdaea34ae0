// im2col and max-pooling on packed spikes, on the CPU.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "spike_pack/windows.h"

namespace snn_core {
namespace {

constexpr int64_t kGrainBytes = 1 << 16;  // bytes written below which a thread is not worth waking

int64_t grain(int64_t bytes_each) { return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, bytes_each)); }

Tensor spike_im2col(Tensor bits, int64_t channels, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                    std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const SpikeWindows windows(bits, channels, kernel, stride, padding, dilation);
  const int64_t row = windows.row_bytes();
  Tensor out = empty_strided(bits, {windows.rows(), row}, {std::max<int64_t>(1, row), 1}, ScalarType::Byte);
  if (windows.rows() == 0 || row == 0) return out;
  advise_huge_pages(out);
  auto* const target = static_cast<uint8_t*>(out.data_ptr());
  torch::stable::parallel_for(0, windows.rows(), grain(row), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) windows.gather(r, target + r * row);
  });
  return out;
}

// One row of windows, the words of the pixels of each or-ed together; `words` a pixel.
template <class Word>
void pool_row(const SpikeWindows& windows, int64_t b, int64_t oh, uint8_t* out) {
  const int64_t words = windows.bytes / static_cast<int64_t>(sizeof(Word));
  const int64_t top = oh * windows.step_h - windows.pad_h;
  const int64_t first = std::max<int64_t>(top, 0), last = std::min(top + windows.kernel_h, windows.height);
  for (int64_t ow = 0; ow < windows.out_w; ++ow, out += windows.bytes) {
    const int64_t left = ow * windows.step_w - windows.pad_w;
    const int64_t begin = std::max<int64_t>(left, 0), end = std::min(left + windows.kernel_w, windows.width);
    for (int64_t i = 0; i < words; ++i) {
      Word any = 0;
      for (int64_t h = first; h < last; ++h) {
        const uint8_t* pixel = windows.pixel(b, h, begin) + i * sizeof(Word);
        for (int64_t w = begin; w < end; ++w, pixel += windows.stride_w) {
          Word word;
          std::memcpy(&word, pixel, sizeof(Word));
          any |= word;
        }
      }
      std::memcpy(out + i * sizeof(Word), &any, sizeof(Word));
    }
  }
}

Tensor spike_max_pool(Tensor bits, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                      std::vector<int64_t> padding) {
  const int64_t channels = bits.dim() == 4 ? 8 * bits.size(3) : 0;
  const SpikeWindows windows(bits, channels, kernel, stride, padding, {1, 1});
  for (int d = 0; d < 2; ++d) {
    if (2 * padding[d] > kernel[d]) throw std::runtime_error("padding must be at most half of kernel");
  }
  const int64_t bytes = windows.bytes, wide = std::max<int64_t>(1, bytes);
  Tensor out = empty_strided(bits, {windows.batch, windows.out_h, windows.out_w, bytes},
                             {std::max<int64_t>(1, windows.pixels()) * wide, std::max<int64_t>(1, windows.out_w) * wide,
                              wide, 1},
                             ScalarType::Byte);
  if (windows.rows() == 0 || bytes == 0) return out;
  auto* const target = static_cast<uint8_t*>(out.data_ptr());
  const auto row = bytes % 8 == 0   ? pool_row<uint64_t>
                   : bytes % 4 == 0 ? pool_row<uint32_t>
                   : bytes % 2 == 0 ? pool_row<uint16_t>
                                    : pool_row<uint8_t>;
  const int64_t row_bytes = windows.out_w * bytes;
  torch::stable::parallel_for(0, windows.batch * windows.out_h, grain(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) row(windows, r / windows.out_h, r % windows.out_h, target + r * row_bytes);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) {
  m.impl("spike_im2col", TORCH_BOX(&spike_im2col));
  m.impl("spike_max_pool", TORCH_BOX(&spike_max_pool));
}

}  // namespace snn_core
