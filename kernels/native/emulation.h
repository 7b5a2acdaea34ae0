// A block of GPU threads on the CPU, for tests: each thread is a fiber that runs until it must wait for others, at a
// barrier or at an instruction of its whole warp. What a GPU leaves open is made as unkind as it can be: shared memory
// starts as NaN, copies arrive no sooner than they are waited for, and threads run in another order in every block.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <vector>

#include "native/device.h"

namespace snn_core::emulation {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kSharedBytes = 227 << 10;

class Block {
 public:
  // Runs `body` as thread 0 to threads - 1 of the block at blockIdx.
  void run(int threads, size_t shared_bytes, const std::function<void()>& body) {
    if (threads % 32 != 0) throw std::runtime_error("emulation: a block of incomplete warps");
    if (shared_bytes > kSharedBytes) throw std::runtime_error("emulation: more shared memory than a GPU has");
    // Exactly as much as was asked for, so that a sanitizer sees what goes past it.
    shared_.reset(static_cast<unsigned char*>(std::aligned_alloc(1024, (shared_bytes + 1024) / 1024 * 1024)));
    std::memset(shared_.get(), 0xff, shared_bytes);
    body_ = &body;
    error_ = nullptr;
    started_.clear();
    fibers_.resize(threads);
    for (int i = 0; i < threads; ++i) start(fibers_[i], i);
    const bool backwards = order_++ % 2 == 1;
    for (int done = 0; done < threads;) {
      done = 0;
      bool progress = false;
      for (int k = 0; k < threads; ++k) {
        Fiber& fiber = fibers_[backwards ? threads - 1 - k : k];
        if (fiber.state == State::kReady) {
          progress = true;
          resume(fiber);
          if (error_) std::rethrow_exception(error_);
        }
        done += fiber.state == State::kDone;
      }
      if (!progress && done < threads) throw std::runtime_error("emulation: threads wait for threads that have ended");
    }
  }

  unsigned char* shared() const { return shared_.get(); }

  void barrier() {
    const auto waiting = std::count_if(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return f.at_barrier; });
    current_->at_barrier = true;
    if (waiting + 1 < static_cast<std::ptrdiff_t>(fibers_.size())) return yield();
    for (Fiber& fiber : fibers_) {
      fiber.at_barrier = false;
      if (&fiber != current_) fiber.state = State::kReady;
    }
  }

  // An instruction of a group of threads: the last to come executes it for all.
  template <class Operand, int kThreads>
  void together(Operand& mine, void (*execute)(Operand* const (&)[kThreads])) {
    current_->operand = &mine;
    current_->instruction = reinterpret_cast<void (*)()>(execute);
    const size_t first = current_->index / kThreads * kThreads;
    if (first + kThreads > fibers_.size()) throw std::runtime_error("emulation: an incomplete group of threads");
    Operand* operands[kThreads];
    for (int i = 0; i < kThreads; ++i) {
      const Fiber& other = fibers_[first + i];
      if (other.operand == nullptr) return yield();
      if (other.instruction != current_->instruction) throw std::runtime_error("emulation: a warp has diverged");
      operands[i] = static_cast<Operand*>(other.operand);
    }
    execute(operands);
    for (int i = 0; i < kThreads; ++i) {
      fibers_[first + i].operand = nullptr;
      if (&fibers_[first + i] != current_) fibers_[first + i].state = State::kReady;
    }
  }

  // Work that a group of threads has started and not yet waited for (asynchronous products), oldest first.
  std::deque<std::vector<std::function<void()>>>& started(int threads) {
    return started_[current_->index / threads];
  }

  void copy(void* target, const void* source, int bytes) {
    check_aligned(target, bytes);
    check_aligned(source, bytes);
    current_->open.push_back({target, source, bytes});
  }
  void commit() { current_->groups.push_back(std::move(current_->open)), current_->open.clear(); }
  void wait(int pending) {
    auto& groups = current_->groups;
    for (; groups.size() > static_cast<size_t>(pending); groups.pop_front()) {
      for (const Copy& c : groups.front()) std::memcpy(c.target, c.source, c.bytes);
    }
  }

 private:
  enum class State { kReady, kWaiting, kDone };
  struct Copy {
    void* target;
    const void* source;
    int bytes;
  };
  struct Fiber {
    size_t index = 0;
    State state = State::kReady;
    bool at_barrier = false;
    void* operand = nullptr;
    void (*instruction)() = nullptr;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
    ucontext_t context{};
    std::unique_ptr<char[]> stack;
  };
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };

  static void check_aligned(const void* address, int bytes) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) throw std::runtime_error("misaligned copy");
  }

  void start(Fiber& fiber, int index) {
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
    fiber.index = index;
    fiber.state = State::kReady;
    fiber.at_barrier = false;
    fiber.operand = nullptr;
    fiber.open.clear();
    fiber.groups.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &scheduler_;
    makecontext(&fiber.context, &Block::enter, 0);
  }
  void resume(Fiber& fiber) {
    current_ = &fiber;
    threadIdx.x = static_cast<unsigned>(fiber.index);
    fiber.state = State::kWaiting;
    swapcontext(&scheduler_, &fiber.context);
  }
  void yield() { swapcontext(&current_->context, &scheduler_); }
  static void enter();

  std::vector<Fiber> fibers_;
  Fiber* current_ = nullptr;
  ucontext_t scheduler_{};
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr error_;
  std::map<size_t, std::deque<std::vector<std::function<void()>>>> started_;
  std::unique_ptr<unsigned char, Free> shared_;
  unsigned order_ = 0;
};

// The block that runs in this thread of the CPU.
inline Block& block() {
  static thread_local Block one;
  return one;
}

inline void Block::enter() {
  Block& self = block();
  try {
    (*self.body_)();
    if (!self.current_->open.empty() || !self.current_->groups.empty()) {
      // A copy into shared memory that nobody waited for would write into the next block's.
      for (const auto& group : self.current_->groups) {
        if (!group.empty()) throw std::runtime_error("emulation: a thread ended before its copies arrived");
      }
    }
  } catch (...) {
    self.error_ = std::current_exception();
  }
  self.current_->state = State::kDone;
}

// Of the 32 threads of a warp.
template <class Operand>
void together(Operand& mine, void (*execute)(Operand* const (&)[32])) {
  block().together<Operand, 32>(mine, execute);
}

}  // namespace snn_core::emulation
