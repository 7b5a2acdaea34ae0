// Bodies of spike_check.h.

#include "spike_pack/spike_check.h"

#define SNN_CONCAT_(a, b) a##b
#define SNN_CONCAT(a, b) SNN_CONCAT_(a, b)

namespace snn_core {
namespace {

// By their bits, as integers; in pieces, so that other values are found early.
template <class Word, Word kOne>
bool binary(const void* source, int64_t n) {
  typedef Word V __attribute__((vector_size(64)));
  constexpr int64_t lanes = sizeof(V) / sizeof(Word), piece = 64 * lanes;
  constexpr Word magnitude = static_cast<Word>(~Word{0}) >> 1;
  const Word* from = static_cast<const Word*>(source);
  const int64_t whole = n - n % lanes;
  int64_t i = 0;
  while (i < whole) {
    const int64_t end = i + piece < whole ? i + piece : whole;
    V other{};
    for (; i < end; i += lanes) {
      V words;
      __builtin_memcpy(&words, from + i, sizeof(V));
      other |= reinterpret_cast<V>(((words & magnitude) != 0) & (words != kOne));
    }
    for (int64_t k = 0; k < lanes; ++k) {
      if (other[k] != 0) return false;
    }
  }
  for (; i < n; ++i) {
    if ((from[i] & magnitude) != 0 && from[i] != kOne) return false;
  }
  return true;
}

}  // namespace

extern const SpikeCheck SNN_CONCAT(spike_check_, SNN_ISA) = {
    {binary<uint32_t, 0x3f800000>, binary<uint16_t, 0x3f80>, binary<uint16_t, 0x3c00>}};

}  // namespace snn_core
