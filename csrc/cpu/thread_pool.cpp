#include "thread_pool.h"

#include <chrono>
#include <stdexcept>
#include <string>

#include "cpu_count.h"

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stagebeam {
namespace {

// The region that this thread is in, so that a nested run is refused instead of waiting for ever.
thread_local const ThreadPool* current_region = nullptr;

int64_t process_id() {
#if defined(__unix__) || defined(__APPLE__)
  return getpid();
#else
  return 0;
#endif
}

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads, int spin_us)
    : num_threads_(num_threads),
      spin_us_(num_threads > available_cpus() ? 0 : spin_us),
      owner_pid_(process_id()),
      workers_(std::make_unique<std::vector<std::thread>>()) {
  if (num_threads < 1 || spin_us < 0) {
    throw std::invalid_argument(
        "a thread pool needs num_threads of at least 1 and spin_us of at least 0, got " +
        std::to_string(num_threads) + " and " + std::to_string(spin_us));
  }
  workers_->reserve(num_threads - 1);
  for (int part = 1; part < num_threads; ++part) {
    workers_->emplace_back([this, part] { work(part); });
  }
}

ThreadPool::~ThreadPool() {
  if (process_id() != owner_pid_) {  // after fork: there is nothing to join
    static_cast<void>(workers_.release());
    return;
  }
  is_stopping_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : *workers_) worker.join();
}

void ThreadPool::run_task(Task task, void* context) {
  if (process_id() != owner_pid_) {
    throw std::runtime_error("this thread pool was made before a fork, in process " +
                             std::to_string(owner_pid_) +
                             ", and its threads do not exist in this one: make it after the fork "
                             "(start worker processes with \"spawn\")");
  }
  if (current_region != nullptr) {
    throw std::logic_error("ThreadPool::run was called inside a parallel region");
  }
  const std::lock_guard guard(run_mutex_);
  task_ = task;
  context_ = context;
  epoch_.fetch_add(1);  // sequentially consistent, as notify_all's look for sleepers needs
  epoch_.notify_all();
  execute(task, context, 0);
}

void ThreadPool::work(int part) {
  uint32_t seen = 0;
  while (true) {
    seen = wait_while_equal(epoch_, seen);
    if (is_stopping_) return;
    execute(task_, context_, part);
  }
}

void ThreadPool::execute(Task task, void* context, int part) noexcept {
  current_region = this;
  task(context, part, num_threads_);
  current_region = nullptr;
  barrier();
}

void ThreadPool::barrier() noexcept {
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 ==
      static_cast<uint32_t>(num_threads_)) {
    num_arrived_.store(0, std::memory_order_relaxed);
    phase_.fetch_add(1);
    phase_.notify_all();
  } else {
    wait_while_equal(phase_, phase);
  }
}

uint32_t ThreadPool::wait_while_equal(const std::atomic<uint32_t>& value,
                                      uint32_t old) const noexcept {
  constexpr int kPausesPerLook = 32;  // a look at the clock costs as much as a few pauses
  uint32_t now = value.load(std::memory_order_acquire);
  if (now != old) return now;
  if (spin_us_ > 0) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us_);
    do {
      for (int i = 0; i < kPausesPerLook; ++i) {
        now = value.load(std::memory_order_acquire);
        if (now != old) return now;
        pause();
      }
    } while (std::chrono::steady_clock::now() < deadline);
  }
  while ((now = value.load(std::memory_order_acquire)) == old) {
    value.wait(old, std::memory_order_acquire);
  }
  return now;
}

}  // namespace stagebeam
