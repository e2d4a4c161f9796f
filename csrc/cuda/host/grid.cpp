#include "grid.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace stagebeam::cuda::host {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr unsigned kWarpSize = 32;

// A stack of its own to run on. Switching saves registers only (setjmp); AddressSanitizer must be
// told of every switch and does not know setjmp between stacks, so there it is ucontext's.
class Fiber {
 public:
  explicit Fiber(void (*entry)()) : stack_(new char[kStackBytes]) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }

  // From the scheduler: run until the fiber pauses.
  void resume() {
#ifdef __SANITIZE_ADDRESS__
    void* saved = nullptr;
    __sanitizer_start_switch_fiber(&saved, stack_.get(), kStackBytes);
    swapcontext(&scheduler_, &context_);
    __sanitizer_finish_switch_fiber(saved, nullptr, nullptr);
#else
    if (_setjmp(scheduler_jump_) != 0) return;
    if (has_started_) _longjmp(jump_, 1);
    has_started_ = true;
    setcontext(&context_);
#endif
  }

  // From the fiber: back to the scheduler.
  void pause() {
#ifdef __SANITIZE_ADDRESS__
    void* saved = nullptr;
    __sanitizer_start_switch_fiber(&saved, scheduler_stack_, scheduler_stack_bytes_);
    swapcontext(&context_, &scheduler_);
    arrived(saved);
#else
    if (_setjmp(jump_) == 0) _longjmp(scheduler_jump_, 1);
#endif
  }

  static void arrived([[maybe_unused]] void* saved) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(saved, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

 private:
  std::unique_ptr<char[]> stack_;
  ucontext_t context_;
#ifdef __SANITIZE_ADDRESS__
  inline static ucontext_t scheduler_;
  inline static const void* scheduler_stack_ = nullptr;
  inline static size_t scheduler_stack_bytes_ = 0;
#else
  inline static jmp_buf scheduler_jump_;
  jmp_buf jump_;
  bool has_started_ = false;
#endif
};

// Opens when as many have arrived as are alive.
struct Barrier {
  unsigned alive = 0, arrived = 0, generation = 0;

  bool opens() {
    if (arrived < alive || alive == 0) return false;
    arrived = 0;
    ++generation;
    return true;
  }
};

struct Warp {
  Barrier barrier;
  unsigned char lanes[2][kWarpSize][32];
};

struct Thread {
  std::unique_ptr<Fiber> fiber;
  const Barrier* waits_for = nullptr;  // and for its generation to pass `generation`
  unsigned generation = 0;
  bool is_done = false;
};

struct Grid {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier block;
  const std::function<void()>* body = nullptr;
  unsigned current = 0, num_threads = 0;
  Order order = Order::kForward;
} grid;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "stagebeam host grid: %s (block %u, %u, %u)\n", what, blockIdx.x, blockIdx.y,
               blockIdx.z);
  std::abort();
}

void wait_at(Barrier& barrier) {
  Thread& me = grid.threads[grid.current];
  const unsigned generation = barrier.generation;
  ++barrier.arrived;
  if (barrier.opens()) return;
  me.waits_for = &barrier;
  me.generation = generation;
  me.fiber->pause();
  me.waits_for = nullptr;
}

// A fiber serves one thread index for ever, a block at a time.
void run_fiber() {
  Fiber::arrived(nullptr);
  while (true) {
    (*grid.body)();
    Thread& me = grid.threads[grid.current];
    Warp& warp = grid.warps[grid.current / kWarpSize];
    me.is_done = true;
    --grid.block.alive;
    grid.block.opens();
    --warp.barrier.alive;
    warp.barrier.opens();
    me.fiber->pause();
  }
}

void run_block(const std::vector<unsigned>& turns) {
  grid.block = {.alive = grid.num_threads};
  for (unsigned w = 0; w < grid.num_threads / kWarpSize; ++w) {
    grid.warps[w].barrier = {.alive = kWarpSize};
    std::memset(grid.warps[w].lanes, 0xFF, sizeof(grid.warps[w].lanes));
  }
  for (unsigned t = 0; t < grid.num_threads; ++t) grid.threads[t].is_done = false;
  for (unsigned left = grid.num_threads; left > 0;) {
    bool has_moved = false;
    for (unsigned t : turns) {
      Thread& thread = grid.threads[t];
      if (thread.is_done) continue;
      if (thread.waits_for && thread.waits_for->generation == thread.generation) continue;
      has_moved = true;
      grid.current = t;
      threadIdx = {t, 0, 0};
      thread.fiber->resume();
      left -= thread.is_done;
    }
    if (!has_moved) fail("threads wait at a barrier that others never reach");
  }
}

}  // namespace

void set_order(Order order) {
  grid.order = order;
}

cudaError_t launch(dim3 size, unsigned num_threads, const std::function<void()>& body) {
  if (num_threads == 0 || num_threads > 1024 || num_threads % kWarpSize || size.x == 0 ||
      size.y == 0 || size.y > 65535 || size.z == 0 || size.z > 65535) {
    return cudaErrorInvalidValue;
  }
  while (grid.threads.size() < num_threads) {
    grid.threads.emplace_back().fiber = std::make_unique<Fiber>(run_fiber);
  }
  grid.warps.resize(std::max<size_t>(grid.warps.size(), num_threads / kWarpSize));
  grid.body = &body;
  grid.num_threads = num_threads;
  blockDim = {num_threads, 1, 1};
  gridDim = size;
  std::vector<unsigned> turns(num_threads);
  for (unsigned t = 0; t < num_threads; ++t) turns[t] = t;
  if (grid.order == Order::kBackward) std::reverse(turns.begin(), turns.end());
  if (grid.order == Order::kShuffled) std::shuffle(turns.begin(), turns.end(), std::mt19937(7));
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; ++x) {
        blockIdx = {x, y, z};
        run_block(turns);
      }
    }
  }
  return cudaSuccess;
}

void wait_for_block() {
  wait_at(grid.block);
}

const unsigned char* exchange(const void* mine, int size) {
  Warp& warp = grid.warps[grid.current / kWarpSize];
  if (warp.barrier.alive < kWarpSize) fail("a warp exchanges after some of its lanes have ended");
  // Two buffers in turn: a lane that runs ahead cannot overwrite what another still reads.
  auto& lanes = warp.lanes[warp.barrier.generation % 2];
  std::memcpy(lanes[grid.current % kWarpSize], mine, size);
  wait_at(warp.barrier);
  return lanes[0];
}

}  // namespace stagebeam::cuda::host
