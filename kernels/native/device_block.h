// The words of kernels whose threads work together: shared memory, barriers, copies that run beside the arithmetic, and
// warps. Device code by nvcc; with SNN_EMULATED, g++ runs a block's threads as fibers (emulation.h), which meet where
// the threads of a GPU would and otherwise run one after the other, each as far as it gets.
#pragma once

#include <cstdint>

#include "native/device.h"
#if defined(SNN_EMULATED)
#include "native/emulation.h"
#endif

namespace snn_core {

constexpr int kWarp = 32;

SNN_DEVICE int lane_of_warp() { return static_cast<int>(threadIdx.x) % kWarp; }
SNN_DEVICE int warp_of_block() { return static_cast<int>(threadIdx.x) / kWarp; }

#if defined(SNN_EMULATED)

inline unsigned char* shared_memory() { return emulation::block().shared(); }
inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(shared) - shared_memory());
}
inline void block_barrier() { emulation::block().barrier(); }

// The value of lane `lane ^ mask`.
template <class T>
T shuffle_xor(T value, int mask) {
  struct Operand {
    T value;
    int mask;
    T result;
  } mine{value, mask, {}};
  emulation::together<Operand>(mine, [](Operand* const (&lanes)[32]) {
    for (int lane = 0; lane < 32; ++lane) lanes[lane]->result = lanes[lane ^ lanes[lane]->mask]->value;
  });
  return mine.result;
}

// Starts copying kBytes (4, 8 or 16), both sides aligned to them. What arrives is seen after a wait and a barrier.
template <int kBytes>
void copy_async(void* shared, const void* global) {
  emulation::block().copy(shared, global, kBytes);
}
inline void commit_copies() { emulation::block().commit(); }
// Until at most kPending of this thread's groups of copies are under way.
template <int kPending>
void wait_for_copies() {
  emulation::block().wait(kPending);
}

#else

// Aligned to 1024 bytes by the launch: no kernel has static shared memory.
SNN_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char snn_shared[];
  return snn_shared;
}
SNN_DEVICE void block_barrier() { __syncthreads(); }

template <class T>
SNN_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

SNN_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

template <int kBytes>
SNN_DEVICE void copy_async(void* shared, const void* global) {
  if constexpr (kBytes == 16) {  // past the first cache: a tile is read once by this block
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(kBytes)
                 : "memory");
  }
}
SNN_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
SNN_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#endif

}  // namespace snn_core
