// The pixels of a simulated event sensor: from log brightness at two moments to the events between them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace snn_core {

// An event as one number: its time, pixel and polarity, from the highest bit down, so that sorting puts time first.
constexpr int kPixelBits = 16, kTimeBits = 30;
constexpr int64_t kMaxTime = int64_t{1} << kTimeBits;
constexpr int32_t kSeeing = std::numeric_limits<int32_t>::max();  // blind_until of a pixel that is not blind

inline int64_t event_key(int64_t time, int64_t pixel, int64_t on) { return time << (kPixelBits + 1) | pixel << 1 | on; }
inline int64_t key_time(int64_t key) { return key >> (kPixelBits + 1); }
inline int64_t key_pixel(int64_t key) { return key >> 1 & ((1 << kPixelBits) - 1); }

// What does not change while a sensor records; all arrays hold one number a pixel.
struct Pixels {
  int64_t count;
  const float *threshold_on, *threshold_off;
  const int32_t* refractory;
};

// Sixteen pixels at a time, on whatever vectors the machine has.
constexpr int64_t kBlock = 16;
typedef float FloatBlock __attribute__((vector_size(4 * kBlock)));
typedef int32_t IntBlock __attribute__((vector_size(4 * kBlock)));

// By reference: passing vectors by value would depend on what the caller is compiled for.
template <class Block, class Element>
inline __attribute__((always_inline)) void load_block(Block& block, const Element* from) {
  std::memcpy(&block, from, sizeof(block));
}

inline bool any(const IntBlock& block) {
  int64_t words[sizeof(IntBlock) / sizeof(int64_t)], together = 0;
  std::memcpy(words, &block, sizeof(block));
  for (const int64_t word : words) together |= word;
  return together != 0;
}

// One recording while it goes on. `reference` is the log brightness that a pixel compares with, not a number where it is
// blind; `blind_until` the time when it sees again.
struct Exposure {
  const Pixels& pixels;
  float* reference;
  int32_t* blind_until;
  const int64_t *noise, *noise_end;  // keys, ascending; those of the past are passed over
  std::vector<int64_t> events;       // keys, ascending

  Exposure(const Pixels& sensor, float* log_brightness, int32_t* until, const int64_t* keys, const int64_t* keys_end)
      : pixels(sensor), reference(log_brightness), blind_until(until), noise(keys), noise_end(keys_end) {}

  // From time `start`, where log brightness is `before`, to `end`, where it is `after`; linear in between.
  void advance(const float* before, const float* after, int64_t start, int64_t end) {
    const size_t old = events.size();
    while (noise < noise_end && key_time(*noise) <= start) ++noise;
    spurious_.clear();
    for (; noise < noise_end && key_time(*noise) <= end; ++noise) spurious_.push_back(*noise);
    std::stable_sort(spurious_.begin(), spurious_.end(),
                     [](int64_t a, int64_t b) { return key_pixel(a) < key_pixel(b); });
    const Step step{before, after, start, end};
    // Afterwards these pixels rest until the end of the step, so that the search below does not find them again.
    for (size_t i = 0; i < spurious_.size();) {
      const int64_t p = key_pixel(spurious_[i]);
      const size_t first = i;
      while (i < spurious_.size() && key_pixel(spurious_[i]) == p) ++i;
      run(p, step, spurious_.data() + first, spurious_.data() + i);
    }
    find_and_run(step);
    std::sort(events.begin() + static_cast<int64_t>(old), events.end());
  }

 private:
  struct Step {
    const float *before, *after;
    int64_t start, end;
  };

  std::vector<int64_t> spurious_;  // of the step, by pixel, then time

  void find_and_run(const Step& step) {
    const auto last_moment = static_cast<int32_t>(step.end);
    int64_t p = 0;
    for (; p + kBlock <= pixels.count; p += kBlock) {
      FloatBlock after, compared, on, off;
      IntBlock until;
      load_block(after, step.after + p);
      load_block(compared, reference + p);
      load_block(on, pixels.threshold_on + p);
      load_block(off, pixels.threshold_off + p);
      load_block(until, blind_until + p);
      const FloatBlock change = after - compared;
      const IntBlock busy = (change >= on) | (change <= -off) | (until <= last_moment);
      if (!any(busy)) continue;
      for (int64_t k = 0; k < kBlock; ++k) {
        if (busy[k]) run(p + k, step, nullptr, nullptr);
      }
    }
    for (; p < pixels.count; ++p) {
      const float change = step.after[p] - reference[p];
      if (change >= pixels.threshold_on[p] || change <= -pixels.threshold_off[p] || blind_until[p] <= last_moment) {
        run(p, step, nullptr, nullptr);
      }
    }
  }

  // Pixel p in the step, with its own noise.
  void run(int64_t p, const Step& step, const int64_t* spurious, const int64_t* spurious_end) {
    const float before = step.before[p], slope = step.after[p] - before;
    const auto length = static_cast<double>(step.end - step.start);
    int64_t since = step.start;
    for (;;) {
      if (blind_until[p] != kSeeing) {
        if (blind_until[p] > step.end) return;
        since = blind_until[p];
        reference[p] = before + static_cast<float>(static_cast<double>(since - step.start) / length) * slope;
        blind_until[p] = kSeeing;
      }
      const float change = step.after[p] - reference[p];
      const bool on = change >= pixels.threshold_on[p];
      int64_t crossing = kMaxTime;
      if (on || change <= -pixels.threshold_off[p]) {
        const float level = reference[p] + (on ? pixels.threshold_on[p] : -pixels.threshold_off[p]);
        float fraction = (level - before) / slope;
        fraction = fraction > 0 ? std::min(fraction, 1.0f) : 0.0f;  // rounding, or no number at all
        // Rounded up, so that an event never lies before the end of its pixel's blindness.
        crossing = step.start + static_cast<int64_t>(std::ceil(static_cast<double>(fraction) * length));
        crossing = std::max({crossing, step.start + 1, since});
      }
      while (spurious < spurious_end && key_time(*spurious) < since) ++spurious;
      int64_t time = crossing;
      if (spurious < spurious_end && key_time(*spurious) < crossing) {
        time = key_time(*spurious);
        events.push_back(*spurious);
      } else if (crossing < kMaxTime) {
        events.push_back(event_key(crossing, p, on));
      } else {
        return;
      }
      reference[p] = std::numeric_limits<float>::quiet_NaN();
      blind_until[p] = static_cast<int32_t>(time + pixels.refractory[p]);
    }
  }
};

}  // namespace snn_core
