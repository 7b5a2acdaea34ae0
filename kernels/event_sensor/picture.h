// A picture displaced in front of the sensor: brightness of its pixels by interpolation, then log brightness by a table.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "event_sensor/pixel_sensor.h"

namespace snn_core {

constexpr int kFractionBits = 16, kPhaseBits = 8;  // of a coordinate on the picture; of it, what chooses the weights

// How the pixels of the sensor look at the picture: pixel i at `position + i * stride`, in picture pixels times 2^16.
struct Optics {
  int64_t width, height;                  // of the sensor
  int64_t picture_width, picture_height;  // of the picture
  int64_t stride_x, stride_y;
  const float* taps;  // [2^8 phases, tap_count]: weights of the picture's pixels from floor(x) - tap_count / 2 + 1 on
  int64_t tap_count;
  const float* brightness;  // [256]: of the picture's values
  const float* response;    // [levels + 1]: log brightness of brightness 0 .. 1
  int64_t levels;
};

inline int64_t whole_blocks(int64_t count) { return (count + kBlock - 1) / kBlock * kBlock; }

class Picture {
 public:
  explicit Picture(const Optics& optics)
      : o_(optics), rows_(whole_blocks(o_.picture_height)), columns_(whole_blocks(o_.width)),
        // Behind a margin of nothing on all sides, pixels that look past the picture need no branch.
        turned_((o_.picture_width + 2 * o_.tap_count) * rows_), across_(columns_ * rows_),
        wide_((o_.picture_height + 2 * o_.tap_count) * columns_), line_(columns_) {}

  void show(const uint8_t* picture) {
    for (int64_t y = 0; y < o_.picture_height; ++y) {
      for (int64_t x = 0; x < o_.picture_width; ++x) {
        turned_[(x + o_.tap_count) * rows_ + y] = o_.brightness[picture[y * o_.picture_width + x]];
      }
    }
  }

  // Log brightness [height, width] with pixel (0, 0) looking at (x, y) of the picture, in picture pixels times 2^16.
  void look(int64_t x, int64_t y, float* log_brightness) {
    for (int64_t column = 0; column < o_.width; ++column) {
      sum(turned_.data(), rows_, o_.picture_width, x + column * o_.stride_x, across_.data() + column * rows_);
    }
    for (int64_t row = 0; row < o_.picture_height; ++row) {
      float* const target = wide_.data() + (row + o_.tap_count) * columns_;
      for (int64_t column = 0; column < o_.width; ++column) target[column] = across_[column * rows_ + row];
    }
    for (int64_t row = 0; row < o_.height; ++row) {
      sum(wide_.data(), columns_, o_.picture_height, y + row * o_.stride_y, line_.data());
      respond(log_brightness + row * o_.width);
    }
  }

 private:
  // Weighted sum of `tap_count` lines of `lines`, which hold `length` numbers each, around `position`.
  void sum(const float* lines, int64_t length, int64_t count, int64_t position, float* target) const {
    const int64_t whole = (position >> kFractionBits) - o_.tap_count / 2 + 1;
    const int64_t first = std::clamp(whole, -o_.tap_count, count) + o_.tap_count;
    const int64_t phase = position >> (kFractionBits - kPhaseBits) & ((1 << kPhaseBits) - 1);
    const float* const weights = o_.taps + phase * o_.tap_count;
    for (int64_t i = 0; i < length; i += kBlock) {
      FloatBlock total{};
      for (int64_t k = 0; k < o_.tap_count; ++k) {
        FloatBlock line;
        load_block(line, lines + (first + k) * length + i);
        total += weights[k] * line;
      }
      std::memcpy(target + i, &total, sizeof(total));
    }
  }

  void respond(float* log_brightness) const {
    const auto scale = static_cast<float>(o_.levels), top = static_cast<float>(o_.levels);
    for (int64_t x = 0; x < o_.width; ++x) {
      const float level = std::min(std::max(line_[x] * scale + 0.5f, 0.0f), top);
      log_brightness[x] = o_.response[static_cast<int32_t>(level)];
    }
  }

  const Optics o_;
  const int64_t rows_, columns_;
  std::vector<float> turned_, across_, wide_, line_;
};

}  // namespace snn_core
