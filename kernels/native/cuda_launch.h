// Launching of kernels, from host code that needs no nvcc: on torch's current stream, or with SNN_EMULATED as a loop
// over the grid.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(SNN_EMULATED)

#include "native/device.h"
#include "native/emulation.h"

namespace snn_core {

// Where a kernel runs. Few blocks, so that small tests walk the grid-stride loops; one multiprocessor, so that they
// reach the wide accesses.
struct Launcher {
  static constexpr int64_t kMaxBlocks = 8;

  explicit Launcher(int /*device*/) {}

  int multiprocessors() const { return 1; }
  int capability() const { return 90; }

  template <class Arguments>
  void operator()(void (*kernel)(Arguments), int64_t blocks, int threads, const Arguments& arguments) const {
    gridDim.x = static_cast<unsigned>(blocks);
    blockDim.x = static_cast<unsigned>(threads);
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(arguments);
    }
  }

  // A kernel whose threads work together (device_block.h).
  template <class Arguments>
  void together(void (*kernel)(Arguments), int64_t blocks, int threads, int shared_bytes,
                const Arguments& arguments) const {
    gridDim.x = static_cast<unsigned>(blocks);
    blockDim.x = static_cast<unsigned>(threads);
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      emulation::block().run(threads, shared_bytes, [&] { kernel(arguments); });
    }
  }
};

}  // namespace snn_core

#else

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <atomic>

namespace snn_core {

inline void check_cuda(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  throw std::runtime_error(std::string("snn_core: ") + what + ": " + cudaGetErrorName(code) + ": " +
                           cudaGetErrorString(code));
}

// The stream that torch works on. The symbol is in torch's CUDA library, which is there by the time that a CUDA tensor
// exists but must not be linked: this library is built where torch has no CUDA, too. (Stream::nativeHandle of the
// stable ABI needs torch 2.13.)
inline cudaStream_t current_stream(int device) {
  using Lookup = int32_t (*)(int32_t, void**);
  static const Lookup lookup = []() -> Lookup {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Lookup>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  if (lookup == nullptr || lookup(device, &stream) != 0) {
    throw std::runtime_error("snn_core: torch's current CUDA stream was not found (is libtorch_cuda.so loaded?)");
  }
  return static_cast<cudaStream_t>(stream);
}

// Where a kernel runs: the device of the tensors, for as long as this lives, and torch's current stream on it.
// Nothing here waits for the device, so that launches can be captured in a CUDA graph.
struct Launcher {
  static constexpr int64_t kMaxBlocks = INT32_MAX;
  static constexpr int kSharedByDefault = 48 << 10;

  explicit Launcher(int device) : guard(device), device(device) {
    // The CUDA runtime linked into this library is not torch's and has its own idea of the current device.
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    stream = current_stream(device);
  }

  int multiprocessors() const {
    static std::atomic<int> known[64] = {};
    int count = device < 64 ? known[device].load() : 0;
    if (count == 0) {
      check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
      if (device < 64) known[device] = count;
    }
    return count;
  }

  // Compute capability: 90 for 9.0.
  int capability() const {
    int major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
    return 10 * major + minor;
  }

  template <class Arguments>
  void operator()(void (*kernel)(Arguments), int64_t blocks, int threads, const Arguments& arguments) const {
    void* parameters[] = {const_cast<Arguments*>(&arguments)};
    check_cuda(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                                dim3(static_cast<unsigned>(threads)), parameters, 0, stream),
               "kernel launch");
  }

  // A kernel whose threads work together (device_block.h), with `shared_bytes` of shared memory.
  template <class Arguments>
  void together(void (*kernel)(Arguments), int64_t blocks, int threads, int shared_bytes,
                const Arguments& arguments) const {
    const auto* const function = reinterpret_cast<const void*>(kernel);
    if (shared_bytes > kSharedByDefault) {
      check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
                 "shared memory of a kernel");
    }
    void* parameters[] = {const_cast<Arguments*>(&arguments)};
    check_cuda(cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)),
                                parameters, shared_bytes, stream),
               "kernel launch");
  }

  torch::stable::accelerator::DeviceGuard guard;
  int device;
  cudaStream_t stream = nullptr;
};

// Null where `kernel` can run on this device, else what stands in the way: no machine code for it and none that the
// driver makes of the PTX, or a driver older than the runtime linked into this library. The device must be the current
// one for torch, too.
template <class Arguments>
const char* why_not(void (*kernel)(Arguments), int device) {
  // The first use of a kernel loads its machine code, which a graph capture in the making must not forbid.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  const bool exchanged = cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess;
  cudaFuncAttributes attributes{};
  cudaError_t code = cudaSetDevice(device);
  if (code == cudaSuccess) code = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel));
  cudaGetLastError();  // or the next launch would report it
  if (exchanged) cudaThreadExchangeStreamCaptureMode(&mode);
  return code == cudaSuccess ? nullptr : cudaGetErrorString(code);
}

}  // namespace snn_core

#endif

namespace snn_core {

// Blocks for `work` threads of work; kernels walk a grid-stride loop, so fewer are right as well.
inline int64_t blocks_for(int64_t work, int threads, int64_t most = Launcher::kMaxBlocks) {
  const int64_t wanted = (work + threads - 1) / threads;
  return wanted < most ? wanted : most;
}

}  // namespace snn_core
