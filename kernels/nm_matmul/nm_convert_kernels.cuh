// Device text of what goes around the matrix products: compress, decompress, bring weights and spikes into the order
// of the tensor cores, add partial sums. Threads do a few elements each and need no other.
#pragma once

#include "nm_matmul/nm_elements.cuh"

namespace snn_core {

// A thread: four neighbours (kCount 4, which lie in one block) or one.
template <int kCount>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kConvertThreads, 4) nm_decompress_kernel(SNN_GRID_CONSTANT DecompressArguments a) {
  const int64_t groups = a.rows * a.k / kCount;
  const int bytes = element_bytes(a.out_type);
  for (int64_t group = global_thread(); group < groups; group += global_threads()) {
    const int64_t first = group * kCount, block = first / a.m;
    const int low = static_cast<int>(first - block * a.m);
    const float scale = a.scale != nullptr ? a.scale[first / a.k] : 1.0f;
    for (int i = 0; i < kCount; ++i) clear_element(a.dense, first + i, bytes);
    for (int j = 0; j < a.n; ++j) {
      const int64_t at = block * a.n + j;
      const int i = read_position(a.indices, a.index_bytes, at, a.bits) - low;
      if (i < 0 || i >= kCount) continue;
      if (a.type == a.out_type && a.scale == nullptr) {
        copy_element(a.values, at, a.dense, first + i, bytes);
      } else {
        const float value = read_element(a.values, at, a.type);
        write_element(a.dense, first + i, a.out_type, a.scale != nullptr ? value * scale : value);
      }
    }
  }
}

SNN_GLOBAL void nm_no_violations_kernel(SNN_GRID_CONSTANT CompressArguments a) { *a.violations = 0; }

SNN_DEVICE void add_atomically(unsigned long long* sum, unsigned long long value) {
#if defined(SNN_EMULATED)
  *sum += value;
#else
  atomicAdd(sum, value);  // of integers: the same in any order
#endif
}

// What a block keeps: the non-zero elements, negative zeros where there is room, then zeros; or what the mask says, then
// zeros. Among equals the first.
template <class Element>
struct BlockChoice {
  const Element* block;
  const uint8_t* mask;
  const CompressArguments& a;
  int count[3] = {0, 0, 0};  // by rank

  SNN_DEVICE BlockChoice(const CompressArguments& a, int64_t index)
      : block(static_cast<const Element*>(a.dense) + index * a.m),
        mask(a.mask == nullptr ? nullptr : a.mask + index * a.m), a(a) {
    for (int i = 0; i < a.m; ++i) {
      const int r = rank(i);
      count[0] += r == 0;
      count[1] += r == 1;
      count[2] += r == 2;
    }
  }
  SNN_DEVICE int rank(int i) const {
    if (mask != nullptr) return mask[i] != 0 ? 2 : 0;
    const uint32_t bits = block[i];
    return (bits & a.magnitude) != 0 ? 2 : (bits & a.sign) != 0 ? 1 : 0;
  }
  // How many of a rank are kept.
  SNN_DEVICE int kept(int r) const {
    const int better = r == 2 ? 0 : r == 1 ? count[2] : count[1] + count[2];
    const int room = a.n > better ? a.n - better : 0;
    return room;
  }
};

// A thread: eight blocks, whose positions fill whole bytes.
template <class Element>
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kConvertThreads, 4) nm_compress_kernel(SNN_GRID_CONSTANT CompressArguments a) {
  const int64_t groups = (a.blocks + 7) / 8;
  const int64_t total = (a.blocks * a.n * a.bits + 7) / 8;
  for (int64_t group = global_thread(); group < groups; group += global_threads()) {
    const int64_t last = a.blocks - group * 8 < 8 ? a.blocks : group * 8 + 8;
    int64_t byte = group * a.n * a.bits;
    uint32_t pending = 0;
    int filled = 0;
    unsigned violations = 0;
    for (int64_t b = group * 8; b < last; ++b) {
      const BlockChoice<Element> choice(a, b);
      violations += choice.count[2] > a.n;
      const int kept[3] = {choice.kept(0), choice.kept(1), choice.kept(2)};
      int seen[3] = {0, 0, 0}, written = 0;
      for (int i = 0; i < a.m; ++i) {
        const int r = choice.rank(i);
        const bool keep = r == 2 ? seen[2]++ < kept[2] : r == 1 ? seen[1]++ < kept[1] : seen[0]++ < kept[0];
        if (!keep) continue;
        const bool zero = choice.mask != nullptr && r == 0;
        static_cast<Element*>(a.values)[b * a.n + written++] = zero ? Element{0} : choice.block[i];
        pending |= static_cast<uint32_t>(i) << filled;
        for (filled += a.bits; filled >= 8; filled -= 8, pending >>= 8) a.indices[byte++] = static_cast<uint8_t>(pending);
      }
    }
    if (filled > 0 && byte < total) a.indices[byte] = static_cast<uint8_t>(pending);
    if (violations > 0) add_atomically(a.violations, violations);
  }
}

// A plane of a float, bits of bfloat16: cut off instead of rounded, so that three planes hold all 24 bits of its mantissa
// and none overflows. An infinity or NaN is in the largest alone.
SNN_DEVICE uint16_t plane_of(float value, int plane, int planes) {
  const int larger = planes - 1 - plane;
  if ((bits_of_float(value) & 0x7f800000u) == 0x7f800000u) {
    if (larger > 0) return 0;
    const bool nan = (bits_of_float(value) & 0x007fffffu) != 0;
    return static_cast<uint16_t>(bits_of_float(value) >> 16 | (nan ? 0x40u : 0u));
  }
  for (int i = 0; i < larger; ++i) value -= float_of_bits(bits_of_float(value) & 0xffff0000u);
  return static_cast<uint16_t>(bits_of_float(value) >> 16);
}

// Where the kept entries of four neighbouring columns are: at most two, or any number of a dense weight.
struct FourColumns {
  int64_t at[4];  // of their values; -1: none

  SNN_DEVICE FourColumns(const PrepareArguments& a, int64_t output, int64_t k) : at{-1, -1, -1, -1} {
    if (a.indices == nullptr) {
      for (int i = 0; i < 4; ++i) at[i] = k + i < a.k ? output * a.k + k + i : -1;
      return;
    }
    for (int i = 0; i < 4;) {  // the blocks that these columns lie in; of M < 4 several
      if (k + i >= a.k) return;
      const int64_t block = (output * a.k + k + i) / a.m;
      const int64_t start = block * a.m - output * a.k - k;  // of the block, relative to the first column
      for (int j = 0; j < a.n; ++j) {
        const int64_t place = block * a.n + j;
        const int64_t column = start + read_position(a.indices, a.index_bytes, place, a.bits);
        SNN_UNROLL  // a register array takes no index of run time
        for (int c = 0; c < 4; ++c) at[c] = column == c ? place : at[c];
      }
      i = static_cast<int>(start + a.m);
    }
  }
};

SNN_DEVICE void write_planes(const PrepareArguments& a, int64_t place, int64_t target, int64_t plane_size) {
  const int bytes = element_bytes(a.target_type);
  for (int p = 0; p < a.planes; ++p, target += plane_size) {
    if (place < 0) {
      clear_element(a.prepared, target, bytes);
    } else if (a.type == a.target_type) {
      copy_element(a.values, place, a.prepared, target, bytes);
    } else if (a.planes > 1) {
      static_cast<uint16_t*>(a.prepared)[target] = plane_of(read_element(a.values, place, a.type), p, a.planes);
    } else {
      write_element(a.prepared, target, a.target_type, read_element(a.values, place, a.type));
    }
  }
}

// A thread: eight columns of an output.
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kConvertThreads, 4) nm_prepare_kernel(SNN_GRID_CONSTANT PrepareArguments a) {
  const int64_t each = a.k_padded / 8, groups = a.outputs * each;
  const int64_t plane_size = a.sparse ? a.k_padded / 2 : a.k_padded;
  for (int64_t group = global_thread(); group < groups; group += global_threads()) {
    const int64_t output = group / each, k = (group - output * each) * 8;
    const int64_t row = output * a.planes * plane_size;
    unsigned nibbles = 0;
    SNN_NO_UNROLL
    for (int half = 0; half < 2; ++half) {
      const FourColumns columns(a, a.first_output + output, k + 4 * half);
      if (!a.sparse) {
        SNN_UNROLL
        for (int i = 0; i < 4; ++i) write_planes(a, columns.at[i], row + k + 4 * half + i, plane_size);
        continue;
      }
      // Two positions, ascending: the kept ones, filled up with others.
      int first = -1, second = -1;
      int64_t first_place = -1, second_place = -1;
      SNN_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (columns.at[i] < 0) continue;
        if (first < 0) {
          first = i;
          first_place = columns.at[i];
        } else {
          second = i;
          second_place = columns.at[i];
        }
      }
      if (first == 3) {  // the other must come before it
        second = 3;
        second_place = first_place;
        first = 2;
        first_place = -1;
      } else if (second < 0) {
        first = first < 0 ? 0 : first;
        second = first + 1;
      }
      nibbles |= static_cast<unsigned>(first | second << 2) << (4 * half);
      write_planes(a, first_place, row + k / 2 + 2 * half, plane_size);
      write_planes(a, second_place, row + k / 2 + 2 * half + 1, plane_size);
    }
    if (a.sparse) a.prepared_indices[group] = static_cast<uint8_t>(nibbles);
  }
}

SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kConvertThreads, 4) nm_pad_kernel(SNN_GRID_CONSTANT PadArguments a) {
  const int64_t each = a.target_bytes / 2, total = a.rows * each;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    const int64_t row = i / each, at = i - row * each;
    const auto* source = static_cast<const uint16_t*>(a.source) + row * (a.bytes / 2);
    static_cast<uint16_t*>(a.target)[i] = at < a.bytes / 2 ? source[at] : uint16_t{0};
  }
}

// The byte of spikes at channel `channel` of position (ky, kx) of a window; 0 outside the image.
SNN_DEVICE const uint8_t* window_pixel(const Windows& w, int64_t row, int ky, int kx) {
  const int64_t line = row / w.out_width;
  const int ox = static_cast<int>(row - line * w.out_width);
  const int64_t image = line / w.out_height;
  const int oy = static_cast<int>(line - image * w.out_height);
  const int iy = oy * w.stride_y - w.pad_y + ky * w.step_y, ix = ox * w.stride_x - w.pad_x + kx * w.step_x;
  if (iy < 0 || iy >= w.height || ix < 0 || ix >= w.width) return nullptr;
  return w.bits + image * w.batch_stride + iy * w.row_stride + ix * w.column_stride;
}

// Even bits into the lower half, odd ones into the upper (kHalves), or bit i to byte i % 4 (kBytes): then the spikes of
// an operand's register are the same bits of its halves or bytes.
SNN_DEVICE uint32_t reorder_spikes(uint32_t word, int order) {
  if (order == kPlain) return word;
  uint32_t t = 0;
  for (int round = 0; round < (order == kBytes ? 2 : 1); ++round) {
    t = (word ^ word >> 1) & 0x22222222u;
    word ^= t ^ t << 1;
    t = (word ^ word >> 2) & 0x0c0c0c0cu;
    word ^= t ^ t << 2;
    t = (word ^ word >> 4) & 0x00f000f0u;
    word ^= t ^ t << 4;
    if (round == 1) break;  // the halves by themselves
    t = (word ^ word >> 8) & 0x0000ff00u;
    word ^= t ^ t << 8;
  }
  if (order == kBytes) {  // now residues 0, 2, 1, 3
    t = (word ^ word >> 8) & 0x0000ff00u;
    word ^= t ^ t << 8;
  }
  return word;
}

// A thread: a word of 32 spikes.
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kConvertThreads, 4) nm_gather_kernel(SNN_GRID_CONSTANT GatherArguments a) {
  const Windows& w = a.windows;
  const int64_t rows = w.batch * w.out_height * w.out_width, total = rows * a.words;
  const int positions = w.kernel_height * w.kernel_width, columns = positions * a.channels;
  const bool whole_bytes = a.channels % 8 == 0 || positions == 1;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    const int64_t row = i / a.words;
    const int first = static_cast<int>(i - row * a.words) * 32;
    uint32_t word = 0;
    for (int done = 0; done < 32 && first + done < columns;) {
      const int position = (first + done) / a.channels, channel = first + done - position * a.channels;
      const int ky = position / w.kernel_width, kx = position - ky * w.kernel_width;
      const uint8_t* const pixel = window_pixel(w, row, ky, kx);
      int count = whole_bytes ? 8 : 1;
      uint32_t spikes = pixel == nullptr ? 0u : pixel[(a.first_channel + channel) >> 3];
      spikes >>= (a.first_channel + channel) & 7;  // 0 but where one at a time is taken
      if (count > a.channels - channel) count = a.channels - channel;
      word |= (spikes & ((1u << count) - 1)) << done;
      done += whole_bytes ? 8 : 1;
    }
    a.gathered[i] = reorder_spikes(word, a.order);
  }
}

// A thread: an output of a row.
SNN_GLOBAL void SNN_LAUNCH_BOUNDS(kConvertThreads, 4) nm_reduce_kernel(SNN_GRID_CONSTANT ReduceArguments a) {
  const int64_t total = a.rows * a.outputs;
  for (int64_t i = global_thread(); i < total; i += global_threads()) {
    float sum = a.partial[i];
    for (int s = 1; s < a.splits; ++s) sum += a.partial[s * total + i];
    const int64_t row = i / a.outputs;
    const int output = static_cast<int>(i - row * a.outputs);
    sum *= a.factor;
    if (a.scale != nullptr) sum *= a.scale[output];
    if (a.bias != nullptr) sum += a.bias[output];
    write_element(a.out, row * a.out_stride + output, a.out_type, sum);
  }
}

}  // namespace snn_core
