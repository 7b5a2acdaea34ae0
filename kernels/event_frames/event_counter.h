// Events counted into frames: the fields of an event by their place in it, the bin of each event, and the counts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace snn_core {

enum IntegerType { kInt8, kUint8, kInt16, kUint16, kInt32, kUint32, kInt64, kUint64, kIntegerTypes };
constexpr int64_t kIntegerBytes[kIntegerTypes] = {1, 1, 2, 2, 4, 4, 8, 8};

struct Field {
  int64_t offset = 0;
  IntegerType type = kInt64;
};

// The events of a recording: `count` records, `stride` bytes apart.
struct Recording {
  const char* data = nullptr;
  int64_t count = 0, stride = 0;
  Field t, x, y, p;
};

struct Sensor {
  int64_t width, height;
  int64_t cells() const { return 2 * width * height; }
};

template <class T>
inline T load(const char* address) {
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}

inline int64_t load_integer(const char* address, IntegerType type) {
  switch (type) {
    case kInt8:
      return load<int8_t>(address);
    case kUint8:
      return load<uint8_t>(address);
    case kInt16:
      return load<int16_t>(address);
    case kUint16:
      return load<uint16_t>(address);
    case kInt32:
      return load<int32_t>(address);
    case kUint32:
      return load<uint32_t>(address);
    default:  // an unsigned time stamp beyond 2^63 wraps, as in numpy
      return load<int64_t>(address);
  }
}

// Reads the fields of event i. Coordinates are read as unsigned, so that one comparison finds negative ones too.
template <class Coordinate, class Polarity>
struct Reader {
  const char *t_data, *x_data, *y_data, *p_data;
  int64_t stride;

  int64_t t(int64_t i) const { return load<int64_t>(t_data + i * stride); }
  uint64_t x(int64_t i) const { return load<Coordinate>(x_data + i * stride); }
  uint64_t y(int64_t i) const { return load<Coordinate>(y_data + i * stride); }
  uint64_t p(int64_t i) const { return load<Polarity>(p_data + i * stride); }
};

// Bin of an event: (its time - start) / step or (its index + start) / step. Past the last bin events are left out, or
// counted in it where it takes the `rest`.
struct Bins {
  bool by_time = true, rest = false;
  int64_t start = 0;
  uint64_t step = 0;
  int64_t count = 0;
};

// Counts a run of events of one recording. State is kept between calls, which follow each other without a gap.
template <class Count>
class EventCounter {
 public:
  static constexpr Count kMax = std::numeric_limits<Count>::max();

  // Cells that would have passed kMax: counting goes on from 0 in them, and each time adds the cell here.
  std::vector<int64_t> clipped;
  // 1 + index of the first event that lies outside the sensor or goes back in time; 0 without one.
  int64_t bad = 0;

  // `frames` holds bins.count frames. `previous`: the time before the first event. With `shared`, the frame that the
  // first event falls into is counted apart, since another counter writes it.
  EventCounter(Count* frames, const Sensor& sensor, const Bins& bins, int64_t previous, bool shared)
      : frames_(frames), sensor_(sensor), bins_(bins), previous_(previous), shared_(shared) {}

  // Events begin .. end - 1 of the reader; event i has index first + i in the recording.
  template <class Events>
  void count(const Events events, int64_t begin, int64_t end, int64_t first) {
    int64_t i = begin;
    while (i < end && !bad) {
      const int64_t in_bin = enter_bin(bins_.by_time ? events.t(i) : first + i, end - i);
      const int64_t stop = bins_.by_time ? end : i + in_bin;
      if (bins_.by_time) {
        i = frame_ ? run<true, true>(events, i, stop, first) : run<true, false>(events, i, stop, first);
      } else {
        i = frame_ ? run<false, true>(events, i, stop, first) : run<false, false>(events, i, stop, first);
      }
    }
  }

  // Adds the frame that was counted apart. Called once all counters are done, one after the other.
  void add_shared_frame() {
    if (apart_.empty()) return;
    Count* const target = frames_ + apart_bin_ * sensor_.cells();
    for (int64_t cell = 0; cell < sensor_.cells(); ++cell) {
      if (apart_[cell] == 0) continue;
      const int64_t sum = int64_t{target[cell]} + apart_[cell];
      if (sum > kMax) clipped.push_back(apart_bin_ * sensor_.cells() + cell);
      target[cell] = static_cast<Count>(sum > kMax ? sum - kMax - 1 : sum);
    }
  }

 private:
  // Sets the frame (null: none) for an event at a position in time or in the recording. Returns how many events, of the
  // `left` from this one on, share it where bins go by index.
  int64_t enter_bin(int64_t position, int64_t left) {
    const uint64_t distance = static_cast<uint64_t>(position) - start_by_kind();
    uint64_t bin = bins_.step == 0 ? bins_.count : distance / bins_.step;
    const bool beyond = bin >= static_cast<uint64_t>(bins_.count);
    // The last bin has no end where it takes the rest, and neither has what lies beyond the bins.
    const bool endless = beyond || (bins_.rest && bin + 1 == static_cast<uint64_t>(bins_.count));
    if (beyond) bin = bins_.count - 1;
    limit_ = endless ? std::numeric_limits<uint64_t>::max() : bins_.step - 1;
    base_ = endless ? static_cast<uint64_t>(position) : start_by_kind() + bin * bins_.step;
    frame_ = beyond && !bins_.rest ? nullptr : frame_of(static_cast<int64_t>(bin));
    bin_offset_ = static_cast<int64_t>(bin) * sensor_.cells();
    if (endless) return left;
    const uint64_t in_bin = base_ + bins_.step - static_cast<uint64_t>(position);
    return static_cast<int64_t>(std::min(in_bin, static_cast<uint64_t>(left)));
  }

  uint64_t start_by_kind() const {
    return bins_.by_time ? static_cast<uint64_t>(bins_.start) : uint64_t{0} - static_cast<uint64_t>(bins_.start);
  }

  Count* frame_of(int64_t bin) {
    if (shared_ && apart_.empty()) {
      apart_.assign(sensor_.cells(), 0);
      apart_bin_ = bin;
    }
    return shared_ && bin == apart_bin_ ? apart_.data() : frames_ + bin * sensor_.cells();
  }

  // Up to the first event of another bin, the first bad one, or `end`; returns where it stopped. The reader is taken by
  // value: storing a count of one byte may change any object in memory, and would make the compiler read it again.
  template <bool kByTime, bool kCount, class Events>
  int64_t run(const Events events, int64_t i, const int64_t end, int64_t first) {
    const uint64_t width = sensor_.width, height = sensor_.height, plane = width * height;
    const uint64_t base = base_, limit = limit_;
    Count* const frame = frame_;
    int64_t previous = previous_;
    for (; i < end; ++i) {
      if constexpr (kByTime) {
        const int64_t t = events.t(i);
        if (t < previous) return fail(i, first);
        if (static_cast<uint64_t>(t) - base > limit) break;
        previous = t;
      }
      const uint64_t x = events.x(i), y = events.y(i), p = events.p(i);
      if ((x >= width) | (y >= height) | (p >= 2)) return fail(i, first);
      if constexpr (kCount) {
        const uint64_t cell = p * plane + y * width + x;
        const Count count = frame[cell];
        if (count == kMax) [[unlikely]] clipped.push_back(bin_offset_ + static_cast<int64_t>(cell));
        frame[cell] = count == kMax ? Count{0} : static_cast<Count>(count + 1);
      }
    }
    previous_ = previous;
    return i;
  }

  int64_t fail(int64_t i, int64_t first) {
    bad = first + i + 1;
    return i;
  }

  Count* const frames_;
  const Sensor sensor_;
  const Bins bins_;
  int64_t previous_;
  const bool shared_;
  std::vector<Count> apart_;
  int64_t apart_bin_ = -1;
  // The bin that is being counted: events whose position is at most limit_ past base_.
  Count* frame_ = nullptr;
  int64_t bin_offset_ = 0;
  uint64_t base_ = 0, limit_ = 0;
};

}  // namespace snn_core
