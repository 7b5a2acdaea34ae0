// The simulated event sensor on the CPU: steps of many recordings between given frames, and whole recordings of pictures
// that move.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "event_sensor/picture.h"
#include "event_sensor/pixel_sensor.h"
#include "native/tensors.h"

namespace snn_core {
namespace {

constexpr int64_t kRecordBytes = 13;  // EVENT_DTYPE: t of 8 bytes, x and y of 2, p of 1

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error("event_sensor: " + what); }

// Data of a contiguous tensor of a shape and type; -1 in the shape fits any size.
template <class T>
T* data_of(const Tensor& tensor, const char* name, ScalarType type, const std::vector<int64_t>& shape) {
  bool fits = tensor.scalar_type() == type && tensor.is_contiguous() &&
              tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t d = 0; fits && d < tensor.dim(); ++d) fits = shape[d] < 0 || tensor.size(d) == shape[d];
  if (!fits) refuse(std::string(name) + " has another type or shape, or is not contiguous");
  return static_cast<T*>(tensor.data_ptr());
}

Pixels pixels_of(const Tensor& on, const Tensor& off, const Tensor& refractory, int64_t count) {
  if (count < 1 || count > int64_t{1} << kPixelBits) refuse("too many pixels, or none");
  return {count, data_of<const float>(on, "threshold_on", ScalarType::Float, {count}),
          data_of<const float>(off, "threshold_off", ScalarType::Float, {count}),
          data_of<const int32_t>(refractory, "refractory", ScalarType::Int, {count})};
}

// Noise of recording b is keys[bounds[b]] to keys[bounds[b + 1] - 1].
struct Noise {
  const int64_t *keys, *bounds;

  Noise(const Tensor& noise, const Tensor& noise_bounds, int64_t batch, int64_t pixels)
      : keys(data_of<const int64_t>(noise, "noise", ScalarType::Long, {-1})),
        bounds(data_of<const int64_t>(noise_bounds, "noise_bounds", ScalarType::Long, {batch + 1})) {
    bool sound = bounds[0] >= 0 && bounds[batch] <= noise.size(0);
    for (int64_t b = 0; sound && b < batch; ++b) sound = bounds[b] <= bounds[b + 1];
    for (int64_t i = sound ? bounds[0] : 0; sound && i < bounds[batch]; ++i) sound = key_pixel(keys[i]) < pixels;
    if (!sound) refuse("noise or noise_bounds reaches past its end");
  }
};

template <class Run>
void for_each_recording(int64_t batch, const Run& run) {
  if (batch == 1) return run(0);
  torch::stable::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) run(b);
  });
}

// One step of all recordings. The result holds the number of events of each, then their keys.
Tensor event_sensor_step(Tensor before, Tensor after, Tensor reference, Tensor blind_until, Tensor threshold_on,
                         Tensor threshold_off, Tensor refractory, Tensor noise, Tensor noise_bounds, int64_t start,
                         int64_t end) {
  if (before.dim() != 2) refuse("before must be [recordings, pixels]");
  const int64_t batch = before.size(0), count = before.size(1);
  const Pixels pixels = pixels_of(threshold_on, threshold_off, refractory, count);
  const auto* const from = data_of<const float>(before, "before", ScalarType::Float, {batch, count});
  const auto* const to = data_of<const float>(after, "after", ScalarType::Float, {batch, count});
  auto* const references = data_of<float>(reference, "reference", ScalarType::Float, {batch, count});
  auto* const blind = data_of<int32_t>(blind_until, "blind_until", ScalarType::Int, {batch, count});
  const Noise spurious(noise, noise_bounds, batch, count);
  if (start < 0 || end <= start || end >= kMaxTime) refuse("start and end must ascend, within 2^30 microseconds");
  std::vector<std::vector<int64_t>> events(batch);
  for_each_recording(batch, [&](int64_t b) {
    Exposure exposure(pixels, references + b * count, blind + b * count, spurious.keys + spurious.bounds[b],
                      spurious.keys + spurious.bounds[b + 1]);
    exposure.advance(from + b * count, to + b * count, start, end);
    events[b] = std::move(exposure.events);
  });
  int64_t total = batch;
  for (const auto& found : events) total += static_cast<int64_t>(found.size());
  Tensor result = empty_strided(before, {total}, {1}, ScalarType::Long);
  auto* const numbers = static_cast<int64_t*>(result.data_ptr());
  int64_t* next = numbers + batch;
  for (int64_t b = 0; b < batch; ++b) {
    numbers[b] = static_cast<int64_t>(events[b].size());
    next = std::copy(events[b].begin(), events[b].end(), next);
  }
  return result;
}

// The path of recording b: where pixel (0, 0) of the sensor looks at each of the times.
struct Path {
  const int32_t *x, *y;
  const int64_t* times;
  int64_t steps;
};

std::vector<int64_t> record_picture(Picture& picture, const Path& path, const Pixels& pixels, const float* leak,
                                    const int64_t* noise, const int64_t* noise_end) {
  // Whole blocks beyond the last pixel are never read; `shown` stays as it is while the picture rests.
  std::vector<float> shown(pixels.count), before(pixels.count), after(pixels.count), reference;
  std::vector<int32_t> blind_until(pixels.count, kSeeing);
  Exposure exposure(pixels, nullptr, blind_until.data(), noise, noise_end);
  for (int64_t s = 0; s < path.steps; ++s) {
    const bool moved = s == 0 || path.x[s] != path.x[s - 1] || path.y[s] != path.y[s - 1];
    if (moved) picture.look(path.x[s], path.y[s], shown.data());
    // Leaking is a rise of the brightness that is not there: the same for all that a pixel compares.
    const auto seconds = static_cast<float>(static_cast<double>(path.times[s]) * 1e-6);
    for (int64_t p = 0; p < pixels.count; ++p) after[p] = shown[p] + leak[p] * seconds;
    if (s == 0) {
      reference = after;
      exposure.reference = reference.data();
    } else {
      exposure.advance(before.data(), after.data(), path.times[s - 1], path.times[s]);
    }
    before.swap(after);
  }
  return std::move(exposure.events);
}

char* write_event(char* target, int64_t key, int64_t width) {
  const int64_t time = key_time(key), pixel = key_pixel(key);
  const auto x = static_cast<int16_t>(pixel % width), y = static_cast<int16_t>(pixel / width);
  std::memcpy(target, &time, 8);
  std::memcpy(target + 8, &x, 2);
  std::memcpy(target + 10, &y, 2);
  target[12] = static_cast<char>(key & 1);
  return target + kRecordBytes;
}

Optics optics_of(const Tensor& pictures, int64_t width, int64_t height, int64_t stride_x, int64_t stride_y,
                 const Tensor& taps, const Tensor& brightness, const Tensor& response) {
  if (pictures.dim() != 3 || pictures.size(1) < 1 || pictures.size(2) < 1) refuse("pictures must be [recordings, h, w]");
  if (width < 1 || height < 1 || width > 1 << kPixelBits || height > 1 << kPixelBits) refuse("no such sensor");
  Optics optics{width, height, pictures.size(2), pictures.size(1), stride_x, stride_y, nullptr, 0, nullptr, nullptr, 0};
  optics.taps = data_of<const float>(taps, "taps", ScalarType::Float, {1 << kPhaseBits, -1});
  optics.tap_count = taps.size(1);
  optics.brightness = data_of<const float>(brightness, "brightness", ScalarType::Float, {256});
  optics.response = data_of<const float>(response, "response", ScalarType::Float, {-1});
  optics.levels = response.size(0) - 1;
  if (optics.tap_count < 1 || optics.levels < 1 || optics.levels > 1 << 20) refuse("taps or response is empty");
  return optics;
}

// Whole recordings of pictures uint8 [B, h, w] on paths int32 [B, S]: EVENT_DTYPE as bytes, and the number of each.
std::tuple<Tensor, Tensor> event_sensor_pictures(Tensor pictures, Tensor x, Tensor y, Tensor times, int64_t width,
                                                 int64_t height, int64_t stride_x, int64_t stride_y, Tensor taps,
                                                 Tensor brightness, Tensor response, Tensor threshold_on,
                                                 Tensor threshold_off, Tensor refractory, Tensor leak, Tensor noise,
                                                 Tensor noise_bounds) {
  const Optics optics = optics_of(pictures, width, height, stride_x, stride_y, taps, brightness, response);
  const int64_t batch = pictures.size(0), steps = times.numel(), count = width * height;
  const auto* const images = data_of<const uint8_t>(pictures, "pictures", ScalarType::Byte, {-1, -1, -1});
  const auto* const path_x = data_of<const int32_t>(x, "x", ScalarType::Int, {batch, steps});
  const auto* const path_y = data_of<const int32_t>(y, "y", ScalarType::Int, {batch, steps});
  const auto* const moments = data_of<const int64_t>(times, "times", ScalarType::Long, {steps});
  if (steps < 1 || moments[0] < 0 || moments[steps - 1] >= kMaxTime) refuse("times must lie within 2^30 microseconds");
  for (int64_t s = 1; s < steps; ++s) {
    if (moments[s] <= moments[s - 1]) refuse("times must ascend");
  }
  const Pixels pixels = pixels_of(threshold_on, threshold_off, refractory, count);
  const auto* const leaks = data_of<const float>(leak, "leak", ScalarType::Float, {count});
  const Noise spurious(noise, noise_bounds, batch, count);
  std::vector<std::vector<int64_t>> events(batch);
  const int64_t area = optics.picture_width * optics.picture_height;
  for_each_recording(batch, [&](int64_t b) {
    Picture picture(optics);
    picture.show(images + b * area);
    const Path path{path_x + b * steps, path_y + b * steps, moments, steps};
    events[b] = record_picture(picture, path, pixels, leaks, spurious.keys + spurious.bounds[b],
                               spurious.keys + spurious.bounds[b + 1]);
  });
  int64_t total = 0;
  Tensor counts = empty_strided(pictures, {batch}, {1}, ScalarType::Long);
  for (int64_t b = 0; b < batch; ++b) {
    total += static_cast<int64_t*>(counts.data_ptr())[b] = static_cast<int64_t>(events[b].size());
  }
  Tensor records = empty_strided(pictures, {total, kRecordBytes}, {kRecordBytes, 1}, ScalarType::Byte);
  auto* target = static_cast<char*>(records.data_ptr());
  for (const auto& found : events) {
    for (const int64_t key : found) target = write_event(target, key, width);
  }
  return {records, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) {
  m.impl("event_sensor_step", TORCH_BOX(&event_sensor_step));
  m.impl("event_sensor_pictures", TORCH_BOX(&event_sensor_pictures));
}

}  // namespace snn_core
