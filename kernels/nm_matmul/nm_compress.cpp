// Dense weights to compressed ones and back, on the CPU.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "native/row_view.h"
#include "nm_matmul/nm_arguments.h"
#include "nm_matmul/nm_engine.h"

namespace snn_core {

constexpr int64_t kGrainElements = 1 << 15;  // below which a thread is not worth waking

Tensor nm_decompress(Tensor values, Tensor indices, int64_t n, int64_t m, int64_t rows, MaybeTensor scale,
                     ScalarType out_dtype) {
  const Storage storage = storage_of_dtype(out_dtype, "out_dtype");
  require_nm(n >= 1 && m >= n && m <= 256 && rows >= 0 && rows < int64_t{1} << 48,
             "n, m and rows must be 1 <= n <= m <= 256 and 0 <= rows < 2^48");
  require_nm(rows == 0 ? values.numel() == 0 : values.numel() % (rows * n) == 0, "rows does not fit values");
  const int64_t k = rows == 0 ? 0 : values.numel() / (rows * n) * m;
  const NMWeight w = make_weight(values, indices, n, m, rows, 1, k);
  const float* const scales = output_vector(scale, rows, "scale");
  Tensor out = empty_strided(values, {rows, k}, {std::max<int64_t>(1, k), 1}, out_dtype);
  if (out.numel() == 0) return out;
  advise_huge_pages(out);
  const bool as_it_is = scales == nullptr && ((w.type == kNMBFloat16 && storage == kBFloat16) ||
                                              (w.type == kNMFloat16 && storage == kFloat16));
  char* const data = static_cast<char*>(out.data_ptr());
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrainElements / k), [&](int64_t begin, int64_t end) {
    auto* const row = static_cast<float*>(nm_scratch(kSumScratch, 4 * k));
    for (int64_t o = begin; o < end; ++o) {
      char* const target = data + o * k * storage_bytes(storage);
      if (as_it_is) {
        nm_panel().row_bits(w, o, reinterpret_cast<uint16_t*>(target));
        continue;
      }
      float* const sums = storage == kFloat32 ? reinterpret_cast<float*>(target) : row;
      nm_panel().row_float(w, o, sums);
      if (scales != nullptr) {
        for (int64_t i = 0; i < k; ++i) sums[i] *= scales[o];
      }
      if (storage != kFloat32) row_tools().from_float[storage](sums, target, k);
    }
  });
  return out;
}

namespace {

// What a block keeps first: its mask, or non-zeros, then negative zeros. NaN is no zero.
template <class T>
int rank_of(T bits) {
  constexpr T sign = static_cast<T>(T{1} << (8 * sizeof(T) - 1));
  if ((bits & static_cast<T>(~sign)) != 0) return 2;
  return bits == sign ? 1 : 0;
}
template <>
int rank_of(uint8_t bits) {  // int8: no negative zero
  return bits != 0 ? 2 : 0;
}

// Blocks first <= b < last of elements of the size of T; `bytes` one number a byte. Returns the number of violations.
template <class T>
int64_t compress_blocks(const T* dense, const uint8_t* mask, int n, int m, int64_t first, int64_t last, T* values,
                        uint8_t* positions) {
  int64_t violations = 0;
  uint8_t rank[256];
  for (int64_t b = first; b < last; ++b) {
    const T* const block = dense + b * m;
    int count[3] = {0, 0, 0};
    for (int i = 0; i < m; ++i) {
      // A bool may come as any byte, from a file for example.
      rank[i] = static_cast<uint8_t>(mask == nullptr ? rank_of(block[i]) : mask[b * m + i] != 0 ? 2 : 0);
      ++count[rank[i]];
    }
    violations += count[2] > n;
    int room[3];  // how many of each rank are kept, the lower positions first
    room[2] = std::min(n, count[2]), room[1] = std::min(n - room[2], count[1]), room[0] = n - room[2] - room[1];
    T* out = values + b * n;
    uint8_t* position = positions + b * n;
    for (int i = 0; i < m; ++i) {
      if (room[rank[i]]-- <= 0) continue;
      const bool dropped = mask != nullptr && rank[i] == 0;
      *out++ = dropped ? T{0} : block[i];
      *position++ = static_cast<uint8_t>(i);
    }
  }
  return violations;
}

void pack_positions(const uint8_t* positions, int64_t count, int bits, uint8_t* out, int64_t bytes) {
  torch::stable::parallel_for(0, bytes, kGrainElements, [&](int64_t begin, int64_t end) {
    for (int64_t byte = begin; byte < end; ++byte) {
      uint32_t word = 0;
      for (int64_t i = 8 * byte / bits; i < count && i * bits < 8 * (byte + 1); ++i) {
        const int64_t shift = i * bits - 8 * byte;
        const uint32_t position = positions[i];
        word |= shift >= 0 ? position << shift : position >> -shift;
      }
      out[byte] = static_cast<uint8_t>(word);
    }
  });
}

template <class T>
int64_t compress(const Tensor& dense, const uint8_t* mask, int n, int m, int64_t blocks, const Tensor& values,
                 uint8_t* positions) {
  constexpr int64_t chunk = 4096;  // blocks whose violations are counted together
  std::vector<int64_t> violations((blocks + chunk - 1) / chunk);
  const auto* const from = static_cast<const T*>(dense.data_ptr());
  auto* const to = static_cast<T*>(values.data_ptr());
  torch::stable::parallel_for(0, static_cast<int64_t>(violations.size()), 2, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      violations[c] = compress_blocks(from, mask, n, m, c * chunk, std::min(blocks, (c + 1) * chunk), to, positions);
    }
  });
  int64_t sum = 0;
  for (const int64_t some : violations) sum += some;
  return sum;
}

std::tuple<Tensor, Tensor, Tensor> nm_compress(Tensor dense, MaybeTensor mask, int64_t n, int64_t m) {
  require_nm(n >= 1 && m >= n && m <= 256, "n and m must be 1 <= n <= m <= 256");
  const int type = nm_type(dense, "dense");
  require_nm(dense.dim() == 2 && dense.is_contiguous() && dense.size(1) % m == 0,
             "dense must be [rows, K], contiguous, K a multiple of m");
  const uint8_t* kept = nullptr;
  if (mask.has_value()) {
    require_nm(mask->scalar_type() == ScalarType::Bool && mask->dim() == 2 && mask->is_contiguous() &&
                   mask->size(0) == dense.size(0) && mask->size(1) == dense.size(1),
               "mask must be bool, contiguous, of the shape of dense");
    kept = static_cast<const uint8_t*>(mask->data_ptr());
  }
  const int64_t blocks = dense.numel() / m;
  const int bits = nm_index_bits(m);
  const int64_t bytes = (blocks * n * bits + 7) / 8;
  Tensor values = torch::stable::new_empty(dense, {blocks, n});
  Tensor indices = empty_strided(dense, {bytes}, {1}, ScalarType::Byte);
  Tensor violations = torch::stable::new_empty(dense, {}, ScalarType::Long);
  std::vector<uint8_t> positions(blocks * n);
  const int width = static_cast<int>(n), period = static_cast<int>(m);
  int64_t count = 0;
  switch (kNMTypeBytes[type]) {
    case 4: count = compress<uint32_t>(dense, kept, width, period, blocks, values, positions.data()); break;
    case 2: count = compress<uint16_t>(dense, kept, width, period, blocks, values, positions.data()); break;
    default: count = compress<uint8_t>(dense, kept, width, period, blocks, values, positions.data());
  }
  if (bytes > 0) pack_positions(positions.data(), blocks * n, bits, static_cast<uint8_t*>(indices.data_ptr()), bytes);
  *static_cast<int64_t*>(violations.data_ptr()) = count;
  return {values, indices, violations};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(snn_core, CPU, m) {
  m.impl("nm_decompress", TORCH_BOX(&nm_decompress));
  m.impl("nm_compress", TORCH_BOX(&nm_compress));
}

}  // namespace snn_core
