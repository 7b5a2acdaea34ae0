// Rows of packed spikes under the windows of a convolution: im2col on bits. Shared by spike_im2col and nm_matmul.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "native/tensors.h"

namespace snn_core {

// Throws unless `values` has `count` entries of at least `least`.
inline void check_list(const std::vector<int64_t>& values, size_t count, int64_t least, const char* name) {
  bool fits = values.size() == count;
  constexpr int64_t most = int64_t{1} << 31;  // so that their products with each other stay within 64 bits
  for (const int64_t value : values) fits = fits && value >= least && value < most;
  if (!fits) {
    throw std::runtime_error(std::string(name) + " must hold " + std::to_string(count) + " integers from " +
                             std::to_string(least) + " to 2^31 - 1");
  }
}

// bits [B, H, W, bytes], the last dimension with stride 1, and the windows on it, in the order of rows [B, OH, OW].
struct SpikeWindows {
  const uint8_t* bits = nullptr;
  int64_t batch = 0, height = 0, width = 0, bytes = 0;  // bytes of a pixel
  int64_t stride_b = 0, stride_h = 0, stride_w = 0;
  int64_t kernel_h = 1, kernel_w = 1, step_h = 1, step_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  int64_t out_h = 0, out_w = 0;
  int64_t offset = 0, segment_bytes = 0;  // the bytes of a pixel that are taken: those of a group of channels
  uint8_t last_mask = 0xff;               // of the last of these bytes: bits past the channels count as 0

  SpikeWindows(const Tensor& t, int64_t channels, const std::vector<int64_t>& kernel,
               const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
               const std::vector<int64_t>& dilation) {
    if (t.scalar_type() != ScalarType::Byte || t.dim() != 4) {
      throw std::runtime_error("bits must be uint8 [B, H, W, ceil(channels / 8)]");
    }
    if (t.size(3) > 1 && t.stride(3) != 1) throw std::runtime_error("bits must have stride 1 along its last dimension");
    bits = static_cast<const uint8_t*>(t.data_ptr());
    batch = t.size(0), height = t.size(1), width = t.size(2), bytes = t.size(3);
    stride_b = t.stride(0), stride_h = t.stride(1), stride_w = t.stride(2);
    slide(channels, kernel, stride, padding, dilation);
  }

  // Of contiguous bits [..., H, W, bytes], or without `image` [..., bytes], whose rows are images of one pixel.
  SpikeWindows(const Tensor& t, bool image, int64_t channels, const std::vector<int64_t>& kernel,
               const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
               const std::vector<int64_t>& dilation) {
    const int64_t dims = t.dim();
    if (t.scalar_type() != ScalarType::Byte || dims < (image ? 3 : 1) || !t.is_contiguous()) {
      throw std::runtime_error("bits must be uint8 [..., H, W, bytes] or [..., bytes], contiguous");
    }
    bits = static_cast<const uint8_t*>(t.data_ptr());
    bytes = t.size(dims - 1), height = width = batch = 1;
    if (image) height = t.size(dims - 3), width = t.size(dims - 2);
    for (int64_t d = 0; d < dims - (image ? 3 : 1); ++d) batch *= t.size(d);
    stride_w = bytes, stride_h = width * bytes, stride_b = height * width * bytes;
    slide(channels, kernel, stride, padding, dilation);
  }

  // Of the channels first .. first + count of every pixel; `first` is a multiple of 8.
  void take(int64_t first, int64_t count) {
    offset = first / 8;
    segment_bytes = (count + 7) / 8;
    last_mask = count % 8 == 0 ? 0xff : static_cast<uint8_t>((1 << count % 8) - 1);
  }

  int64_t pixels() const { return out_h * out_w; }
  int64_t rows() const { return batch * pixels(); }
  int64_t row_bytes() const { return kernel_h * kernel_w * segment_bytes; }

  // Whether row r lies in memory as it is.
  bool direct() const {
    return kernel_h == 1 && kernel_w == 1 && pad_h == 0 && pad_w == 0 && last_mask == 0xff;
  }
  const uint8_t* pixel(int64_t b, int64_t h, int64_t w) const {
    return bits + b * stride_b + h * stride_h + w * stride_w + offset;
  }
  const uint8_t* direct_row(int64_t r) const {
    const int64_t b = r / pixels(), rest = r % pixels();
    return pixel(b, rest / out_w * step_h, rest % out_w * step_w);
  }

  // Row r where it lies, or gathered in `buffer`.
  const uint8_t* row(int64_t r, uint8_t* buffer) const {
    if (direct()) return direct_row(r);
    gather(r, buffer);
    return buffer;
  }

  // gather() of windows r .. r + count, side by side in one row of them, `step` bytes apart, of which the last
  // kRunSlack may follow those of a window; `line`: scratch of kLineBytes. Pixels are laid side by side once for each
  // row of the kernel, with what is outside, so that every window is copied in the same way.
  void gather_run(int64_t r, int64_t count, uint8_t* out, int64_t step, uint8_t* line) const {
    const int64_t pixel_count = (count - 1) * step_w + kernel_w, run = kernel_w * segment_bytes;
    const bool alone = count == 1 || (dilation_w != 1 && kernel_w != 1);
    if (alone || pixel_count > (kLineBytes - kRunSlack) / std::max<int64_t>(1, segment_bytes)) {
      for (int64_t j = 0; j < count; ++j) gather(r + j, out + j * step);
      return;
    }
    const int64_t b = r / pixels(), rest = r % pixels();
    const int64_t top = rest / out_w * step_h - pad_h, left = rest % out_w * step_w - pad_w;
    for (int64_t i = 0; i < kernel_h; ++i, out += run) {
      const int64_t h = top + i * dilation_h;
      lay_out(b, h >= 0 && h < height ? h : -1, left, pixel_count, line);
      if (run <= kRunSlack) {
        copy_runs<1>(out, step, line, step_w * segment_bytes, count);
      } else if (run <= 2 * kRunSlack) {
        copy_runs<2>(out, step, line, step_w * segment_bytes, count);
      } else {
        const int64_t pieces = (run + kRunSlack - 1) / kRunSlack;
        for (int64_t j = 0; j < count; ++j) {
          for (int64_t q = 0; q < pieces; ++q) {
            std::memcpy(out + j * step + q * kRunSlack, line + j * step_w * segment_bytes + q * kRunSlack, kRunSlack);
          }
        }
      }
    }
  }
  static constexpr int64_t kRunSlack = 16, kLineBytes = 16 << 10;

  // The bytes of `count` pixels of row h of image b (-1: of zeros) from pixel `left` on; zeros outside.
  void lay_out(int64_t b, int64_t h, int64_t left, int64_t count, uint8_t* line) const {
    const int64_t begin = std::clamp<int64_t>(-left, 0, count), end = std::clamp<int64_t>(width - left, begin, count);
    if (h < 0 || begin == end) {
      std::memset(line, 0, count * segment_bytes);
      return;
    }
    std::memset(line, 0, begin * segment_bytes);
    std::memset(line + end * segment_bytes, 0, (count - end) * segment_bytes);
    if (stride_w == segment_bytes) {
      std::memcpy(line + begin * segment_bytes, pixel(b, h, left + begin), (end - begin) * segment_bytes);
    } else {
      for (int64_t j = begin; j < end; ++j) copy(line + j * segment_bytes, pixel(b, h, left + j), segment_bytes);
    }
    if (last_mask != 0xff) {
      for (int64_t j = begin + 1; j <= end; ++j) line[j * segment_bytes - 1] &= last_mask;
    }
  }

  // The bytes under window r, kernel position by kernel position.
  void gather(int64_t r, uint8_t* out) const {
    const int64_t b = r / pixels(), rest = r % pixels();
    const int64_t top = rest / out_w * step_h - pad_h, left = rest % out_w * step_w - pad_w;
    // A row of the window is one run of bytes where pixels lie side by side and none is outside.
    const bool run = dilation_w == 1 && stride_w == segment_bytes && left >= 0 && left + kernel_w <= width;
    for (int64_t i = 0; i < kernel_h; ++i, out += kernel_w * segment_bytes) {
      const int64_t h = top + i * dilation_h;
      if (h < 0 || h >= height) {
        std::memset(out, 0, kernel_w * segment_bytes);
      } else if (run) {
        copy(out, pixel(b, h, left), kernel_w * segment_bytes);
      } else {
        for (int64_t j = 0; j < kernel_w; ++j) {
          const int64_t w = left + j * dilation_w;
          if (w < 0 || w >= width) {
            std::memset(out + j * segment_bytes, 0, segment_bytes);
          } else {
            copy(out + j * segment_bytes, pixel(b, h, w), segment_bytes);
          }
        }
      }
      if (last_mask != 0xff) {
        for (int64_t j = 1; j <= kernel_w; ++j) out[j * segment_bytes - 1] &= last_mask;
      }
    }
  }

 private:
  // Sets what follows from the options of the convolution.
  void slide(int64_t channels, const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
    if (channels < 0 || bytes != (channels + 7) / 8) throw std::runtime_error("channels does not fit bits");
    check_list(kernel, 2, 1, "kernel");
    check_list(stride, 2, 1, "stride");
    check_list(padding, 2, 0, "padding");
    check_list(dilation, 2, 1, "dilation");
    kernel_h = kernel[0], kernel_w = kernel[1], step_h = stride[0], step_w = stride[1];
    pad_h = padding[0], pad_w = padding[1], dilation_h = dilation[0], dilation_w = dilation[1];
    out_h = extent(height, 0, kernel_h, step_h, pad_h, dilation_h);
    out_w = extent(width, 1, kernel_w, step_w, pad_w, dilation_w);
    take(0, channels);
    int64_t area = 0, rows = 0, window = 0, all = 0;
    if (__builtin_mul_overflow(out_h, out_w, &area) || __builtin_mul_overflow(batch, area, &rows) ||
        __builtin_mul_overflow(kernel_h * kernel_w, bytes, &window) || __builtin_mul_overflow(rows, window, &all)) {
      throw std::runtime_error("padding: there are too many windows");
    }
  }

  template <int kPieces>
  static void copy_runs(uint8_t* out, int64_t step, const uint8_t* line, int64_t line_step, int64_t count) {
    for (int64_t j = 0; j < count; ++j, out += step, line += line_step) {
      for (int q = 0; q < kPieces; ++q) std::memcpy(out + q * kRunSlack, line + q * kRunSlack, kRunSlack);
    }
  }

  // Without the call of a library function, which takes longer than these few bytes; the last words may overlap.
  static void copy(uint8_t* out, const uint8_t* from, int64_t count) {
    if (count < 4 || count > 256) {
      std::memcpy(out, from, count);
    } else if (count < 8) {
      std::memcpy(out, from, 4);
      std::memcpy(out + count - 4, from + count - 4, 4);
    } else {
      for (int64_t i = 0; i + 8 < count; i += 8) std::memcpy(out + i, from + i, 8);
      std::memcpy(out + count - 8, from + count - 8, 8);
    }
  }

  static int64_t extent(int64_t size, int which, int64_t window, int64_t step, int64_t pad, int64_t dilation) {
    const int64_t reach = size + 2 * pad - dilation * (window - 1) - 1;
    if (reach < 0) {
      throw std::runtime_error(std::string("kernel is larger than the padded ") + (which == 0 ? "height" : "width") +
                               " of bits");
    }
    return reach / step + 1;
  }
};

}  // namespace snn_core
