// Events -> frames on the CPU.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "event_frames/event_counter.h"
#include "native/tensors.h"

namespace snn_core {
namespace {

constexpr int64_t kFieldNumbers = 8;  // offset and type of t, x, y and p
constexpr int64_t kBlock = 256;       // events of any layout that are decoded at once
// Events below which a second piece is not worth a frame of its own and a thread; at most so many pieces.
constexpr int64_t kPiece = 1 << 16, kPieces = 16;

enum By : int64_t { kEqualTime, kEqualCount, kTimeFrom, kIndexFrom };

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error("event_frames: " + what); }

Field field_at(const int64_t* fields, int64_t position, int64_t record_bytes) {
  const int64_t offset = fields[position], type = fields[position + 1];
  if (type < 0 || type >= kIntegerTypes) refuse("fields holds a type that is none");
  const Field field{offset, static_cast<IntegerType>(type)};
  if (offset < 0 || offset + kIntegerBytes[type] > record_bytes) refuse("fields reaches past the end of a record");
  return field;
}

Recording recording_of(const Tensor& events, const int64_t* fields) {
  if (events.scalar_type() != ScalarType::Byte || events.dim() != 2 || (events.size(1) > 1 && events.stride(1) != 1)) {
    refuse("events must be uint8 [number of events, bytes of an event] with a last stride of 1");
  }
  Recording recording{static_cast<const char*>(events.data_ptr()), events.size(0), events.stride(0), {}, {}, {}, {}};
  Field* const targets[] = {&recording.t, &recording.x, &recording.y, &recording.p};
  for (int k = 0; k < 4; ++k) *targets[k] = field_at(fields, 2 * k, events.size(1));
  return recording;
}

// The bins of one recording. Unsigned differences of time stamps hold for any two of them.
Bins bins_of(const Recording& recording, int64_t by, int64_t start, int64_t step, int64_t count, bool rest) {
  Bins bins{by == kEqualTime || by == kTimeFrom, rest, start, static_cast<uint64_t>(step), count};
  if (by == kEqualTime) {
    const char* const t = recording.data + recording.t.offset;
    bins.start = load_integer(t, recording.t.type);
    const int64_t last = load_integer(t + (recording.count - 1) * recording.stride, recording.t.type);
    bins.step = (static_cast<uint64_t>(last) - static_cast<uint64_t>(bins.start)) / static_cast<uint64_t>(count);
  } else if (by == kEqualCount) {
    bins.start = 0;
    bins.step = recording.count / count;
  }
  return bins;
}

template <class Coordinate, class Polarity>
Reader<Coordinate, Polarity> reader_of(const Recording& recording) {
  const char* const data = recording.data;
  return {data + recording.t.offset, data + recording.x.offset, data + recording.y.offset, data + recording.p.offset,
          recording.stride};
}

// Any layout: blocks of it are widened to 64 bits first.
template <class Counter>
void count_any(const Recording& recording, int64_t begin, int64_t end, Counter& counter) {
  std::array<std::array<int64_t, kBlock>, 4> block;
  const Field fields[] = {recording.t, recording.x, recording.y, recording.p};
  const auto address = [&](int k) { return reinterpret_cast<const char*>(block[k].data()); };
  const Reader<uint64_t, uint64_t> reader{address(0), address(1), address(2), address(3), sizeof(int64_t)};
  for (int64_t i = begin; i < end && !counter.bad; i += kBlock) {
    const int64_t count = std::min(kBlock, end - i);
    for (int k = 0; k < 4; ++k) {
      const char* source = recording.data + i * recording.stride + fields[k].offset;
      for (int64_t j = 0; j < count; ++j, source += recording.stride) {
        block[k][j] = load_integer(source, fields[k].type);
      }
    }
    counter.count(reader, 0, count, i);
  }
}

bool has_bytes(const Field& field, int64_t bytes) { return kIntegerBytes[field.type] == bytes; }

// Readers for the layouts that are common: time of 64 bits; coordinates of 16 and polarity of 8 or 16, or all of 64.
template <class Counter>
void count_piece(const Recording& recording, const Sensor& sensor, int64_t begin, int64_t end, Counter& counter) {
  const bool wide_time = has_bytes(recording.t, 8);
  // A negative number of 16 bits read as unsigned is at least 2^15, which must be outside the sensor.
  const bool narrow = has_bytes(recording.x, 2) && has_bytes(recording.y, 2) &&
                      std::max(sensor.width, sensor.height) <= (1 << 15);
  const bool wide = has_bytes(recording.x, 8) && has_bytes(recording.y, 8);
  if (wide_time && narrow && has_bytes(recording.p, 1)) {
    counter.count(reader_of<uint16_t, uint8_t>(recording), begin, end, 0);
  } else if (wide_time && narrow && has_bytes(recording.p, 2)) {
    counter.count(reader_of<uint16_t, uint16_t>(recording), begin, end, 0);
  } else if (wide_time && wide && has_bytes(recording.p, 8)) {
    counter.count(reader_of<uint64_t, uint64_t>(recording), begin, end, 0);
  } else {
    count_any(recording, begin, end, counter);
  }
}

struct Outcome {
  std::vector<int64_t> clipped;  // cells of the recording's frames, ascending
  int64_t bad = 0;
};

// Pieces of consecutive events are counted side by side. Every frame but the first of a piece begins in it, so that no
// other counter writes it; the first is counted apart and added. (With time stamps that go backwards this does not hold:
// counts may then be lost, but the recording is refused.) Sums of integers do not depend on how the events are cut.
template <class Count>
Outcome count_recording(const Recording& recording, const Sensor& sensor, const Bins& bins, Count* frames,
                        bool in_pieces) {
  using Counter = EventCounter<Count>;
  const int64_t piece = std::max(kPiece, sensor.cells());
  const int64_t pieces = in_pieces ? std::clamp<int64_t>(recording.count / piece, 1, kPieces) : 1;
  const auto border = [&](int64_t k) { return recording.count / pieces * k + recording.count % pieces * k / pieces; };
  std::vector<Counter> counters;
  counters.reserve(pieces);
  for (int64_t k = 0; k < pieces; ++k) {
    const char* const before = recording.data + (border(k) - 1) * recording.stride + recording.t.offset;
    const int64_t previous = k == 0 ? INT64_MIN : load_integer(before, recording.t.type);
    counters.emplace_back(frames, sensor, bins, previous, k > 0);
  }
  const auto run = [&](int64_t k) { count_piece(recording, sensor, border(k), border(k + 1), counters[k]); };
  if (pieces == 1) {
    run(0);
  } else {
    torch::stable::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) run(k);
    });
  }
  Outcome outcome;
  for (Counter& counter : counters) {
    counter.add_shared_frame();
    outcome.clipped.insert(outcome.clipped.end(), counter.clipped.begin(), counter.clipped.end());
    if (outcome.bad == 0) outcome.bad = counter.bad;
  }
  std::sort(outcome.clipped.begin(), outcome.clipped.end());
  outcome.clipped.erase(std::unique(outcome.clipped.begin(), outcome.clipped.end()), outcome.clipped.end());
  for (const int64_t cell : outcome.clipped) frames[cell] = Counter::kMax;
  return outcome;
}

template <class Count>
std::vector<Outcome> count_all(const Tensor& frames, const std::vector<Recording>& recordings, int64_t by,
                               int64_t start, int64_t step, bool rest) {
  const Sensor sensor{frames.size(4), frames.size(3)};
  const int64_t frame_count = frames.size(1);
  auto* const data = static_cast<Count*>(frames.data_ptr());
  const auto batch = static_cast<int64_t>(recordings.size());
  std::vector<Outcome> outcomes(batch);
  const auto run = [&](int64_t b) {
    const Recording& recording = recordings[b];
    if (recording.count == 0) return;
    const Bins bins = bins_of(recording, by, start, step, frame_count, rest);
    outcomes[b] = count_recording(recording, sensor, bins, data + b * frame_count * sensor.cells(), batch == 1);
  };
  if (batch == 1) {
    run(0);
    return outcomes;
  }
  int64_t events = 0;
  for (const Recording& recording : recordings) events += recording.count;
  const int64_t grain = std::max<int64_t>(1, batch * kPiece / std::max<int64_t>(1, 4 * events));
  torch::stable::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) run(b);
  });
  return outcomes;
}

void check(const Tensor& frames, const std::vector<Tensor>& events, const Tensor& fields, int64_t by, int64_t step) {
  if (frames.dim() != 5 || frames.size(2) != 2 || !frames.is_contiguous()) {
    refuse("frames must be contiguous [recordings, T, 2, H, W]");
  }
  const auto batch = static_cast<int64_t>(events.size());
  if (frames.size(0) != batch) refuse("frames and events hold different numbers of recordings");
  if (batch > 0 && frames.numel() == 0) refuse("frames has a dimension of size 0");
  if (fields.scalar_type() != ScalarType::Long || fields.dim() != 2 || fields.size(1) != kFieldNumbers ||
      (fields.size(0) != 1 && fields.size(0) != batch) || !fields.is_contiguous()) {
    refuse("fields must be contiguous int64 [1 or recordings, 8]");
  }
  if (by < kEqualTime || by > kIndexFrom) refuse("by must be 0, 1, 2 or 3");
  if (step < 0 || (by >= kTimeFrom && step == 0)) refuse("step must be at least 1");
}

// frames [B, T, 2, H, W] are added to. The result holds, for each recording, the number of its cells that were clipped;
// then for each 1 + the index of its first event that cannot be counted (0: none); then the clipped cells of all, as flat
// indices into frames. One tensor, since a call for a short recording takes as long as counting it.
Tensor event_frames(Tensor frames, std::vector<Tensor> events, Tensor fields, int64_t by, int64_t start, int64_t step,
                    bool rest) {
  check(frames, events, fields, by, step);
  const auto batch = static_cast<int64_t>(events.size());
  std::vector<Recording> recordings;
  recordings.reserve(batch);
  const auto* const layouts = static_cast<const int64_t*>(fields.data_ptr());
  const bool same_fields = fields.size(0) == 1;
  for (int64_t b = 0; b < batch; ++b) {
    recordings.push_back(recording_of(events[b], layouts + (same_fields ? 0 : kFieldNumbers * b)));
  }
  std::vector<Outcome> outcomes;
  switch (frames.scalar_type()) {
    case ScalarType::Byte:
      outcomes = count_all<uint8_t>(frames, recordings, by, start, step, rest);
      break;
    case ScalarType::Short:
      outcomes = count_all<int16_t>(frames, recordings, by, start, step, rest);
      break;
    case ScalarType::Int:
      outcomes = count_all<int32_t>(frames, recordings, by, start, step, rest);
      break;
    default:
      refuse("frames must be uint8, int16 or int32");
  }
  int64_t total = 0;
  for (const Outcome& outcome : outcomes) total += static_cast<int64_t>(outcome.clipped.size());
  Tensor report = empty_strided(frames, {2 * batch + total}, {1}, ScalarType::Long);
  auto* const numbers = static_cast<int64_t*>(report.data_ptr());
  int64_t* cells = numbers + 2 * batch;
  const int64_t recording_cells = batch == 0 ? 0 : frames.numel() / batch;
  for (int64_t b = 0; b < batch; ++b) {
    numbers[b] = static_cast<int64_t>(outcomes[b].clipped.size());
    numbers[batch + b] = outcomes[b].bad;
    for (const int64_t cell : outcomes[b].clipped) *cells++ = b * recording_cells + cell;
  }
  return report;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) { m.impl("event_frames", TORCH_BOX(&event_frames)); }

}  // namespace snn_core
