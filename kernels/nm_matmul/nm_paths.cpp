#include "nm_matmul/nm_paths.h"

#include <algorithm>
#include <limits>

#include "nm_matmul/nm_engine.h"

namespace snn_core {
namespace {

// Expected times in microseconds for 1024 x 1024 weights, fitted to the measurements of docs/notes/nm_matmul.md. Every
// one grows with the number of weights, so that the shape does not matter.

constexpr int kGroupRows = 16;
constexpr int64_t kCachedBytes = 1 << 20;  // of values, above which a weight is taken to come from memory
constexpr double kFromMemory = 90.0;

int64_t kept_of(const NMWeight& w) { return w.indices != nullptr ? w.k() / w.m * w.n : w.k(); }

bool is_pattern(const NMWeight& w, int n, int m) { return w.indices != nullptr && w.n == n && w.m == m; }

bool wide(const NMWeight& w) { return w.type == kNMFloat32 || w.type == kNMFloat16; }

bool eight_bits(const NMWeight& w) { return kNMTypeBytes[w.type] == 1; }

// `first` for the weights of a block of rows and `more` for each 16 of them.
double in_blocks(int64_t rows, double first, double more) {
  const int64_t blocks = (rows + kNMBlockRows - 1) / kNMBlockRows, groups = (rows + kGroupRows - 1) / kGroupRows;
  return blocks * first + groups * more;
}

double lookup_time(const NMWeight& w, int64_t rows) {
  const double slower = eight_bits(w) ? 40.0 : 0.0, table = wide(w) ? 38.0 : 0.0;
  if (w.indices == nullptr) return in_blocks(rows, 123.0 + 2 * slower, 110.0 + table);
  if (is_pattern(w, 1, 4)) return in_blocks(rows, 68.0 + slower, 48.0 + table / 2);
  if (is_pattern(w, 4, 8)) return in_blocks(rows, 300.0 + slower, 72.0 + table);
  if (is_pattern(w, 1, 2)) return in_blocks(rows, 182.0 + slower, 73.0 + table);
  const int64_t together = w.type == kNMBFloat16 ? rows / (kNMWideBlocks * kNMBlockRows) * kNMWideBlocks : 0;
  return 265.0 * together + in_blocks(rows - together * kNMBlockRows, 94.0 + slower, 55.0 + table);
}

double few_rows_time(const NMWeight& w, int64_t rows) {
  const double type = eight_bits(w) ? 1.6 : wide(w) ? 1.8 : 1.0;
  if (w.indices == nullptr) return type * (10.0 + 19.0 * rows);
  if (2 * w.n == w.m && 64 % w.m == 0) return type * (26.0 + 11.5 * rows);
  const bool vector_masks = is_pattern(w, 1, 4) || is_pattern(w, 1, 8) || is_pattern(w, 2, 8);
  return vector_masks ? type * (22.0 + 16.0 * rows) : 100.0 + 100.0 * rows;
}

double kept_time(const NMWeight& w, int64_t rows) {
  const double density = static_cast<double>(w.n) / w.m;
  return in_blocks(rows, 100.0 + 680.0 * density, 130.0 * density);
}

double event_time(const NMWeight& w, int64_t rows, double rate) {
  const bool vectors = w.indices == nullptr || (w.n <= 2 && (w.m == 4 || w.m == 8 || w.m == 16));
  // Decoding waits for weights from memory; the other paths ask for them in time.
  const bool cold = w.outputs * kept_of(w) * kNMTypeBytes[w.type] > kCachedBytes;
  const double decoding = !vectors ? 700.0 : w.type == kNMBFloat16 ? 205.0 : wide(w) ? 305.0 : 260.0;
  return decoding + (cold ? kFromMemory : 0.0) + rows * (wide(w) ? 0.4 + 32.0 * rate : 0.1 + 17.5 * rate);
}

}  // namespace

int nm_fastest_path(const NMWeight& w, int64_t rows, const std::function<double()>& rate) {
  int best = kNMEvent;
  double least = std::numeric_limits<double>::infinity();
  const auto consider = [&](int path, double time) {
    if (time < least && nm_kernel(path, w) != nullptr) best = path, least = time;
  };
  consider(kNMLookup, lookup_time(w, rows));
  consider(kNMFewRows, few_rows_time(w, rows));
  if (w.indices != nullptr) consider(kNMKept, kept_time(w, rows));
  if (event_time(w, rows, 0.0) < least && event_time(w, rows, rate()) < least) best = kNMEvent;
  return best;
}

}  // namespace snn_core
