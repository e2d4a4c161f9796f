#include "thread_pool.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "cpu_count.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stagebeam {
namespace {

// The region that this thread is in, so that a nested run is refused instead of waiting for ever.
thread_local const ThreadPool* current_region = nullptr;
thread_local int current_part = 0;

// How many forks lie between this process and the first. Asking the system for the process's id
// before each region costs up to 2 us, since it drops what the processor knows of memory.
uint32_t num_forks() {
  static std::atomic<uint32_t> count{0};
#if defined(__unix__) || defined(__APPLE__)
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1, std::memory_order_relaxed); });
  static_cast<void>(registered);
#endif
  return count.load(std::memory_order_relaxed);
}

// Counts wrap around; those compared are never far apart.
inline bool has_reached(uint32_t count, uint32_t least) {
  return static_cast<int32_t>(count - least) >= 0;
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
      birth_(num_forks()),
      arrivals_(std::make_unique<Arrivals[]>(std::max(num_threads, 1))),
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
  if (num_forks() != birth_) {  // after fork: there is nothing to join
    static_cast<void>(workers_.release());
    return;
  }
  is_stopping_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : *workers_) worker.join();
}

void ThreadPool::run_task(Task task, void* context) {
  if (num_forks() != birth_) {
    throw std::runtime_error(
        "this thread pool was made before a fork, and its threads do not exist in this process: "
        "make it after the fork (start worker processes with \"spawn\")");
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
    seen = wait_for(epoch_, seen + 1, spin_us_ * kIdleSpins);
    if (is_stopping_) return;
    execute(task_, context_, part);
  }
}

void ThreadPool::execute(Task task, void* context, int part) noexcept {
  current_region = this;
  current_part = part;
  task(context, part, num_threads_);
  current_region = nullptr;
  barrier();
}

uint32_t ThreadPool::arrive() noexcept {
  for (int part = 0; part < num_threads_; ++part) {  // they come while the count is written
    if (part != current_part) __builtin_prefetch(&arrivals_[part]);
  }
  std::atomic<uint32_t>& count = arrivals_[current_part].count;
  const uint32_t arrival = count.load(std::memory_order_relaxed) + 1;
  count.store(arrival);  // sequentially consistent, as notify_all's look for sleepers needs
  count.notify_all();
  return arrival;
}

bool ThreadPool::is_open(uint32_t arrival) const noexcept {
  for (int part = 0; part < num_threads_; ++part) {
    if (!has_reached(arrivals_[part].count.load(std::memory_order_acquire), arrival)) return false;
  }
  return true;
}

void ThreadPool::wait(uint32_t arrival) const noexcept {
  for (int part = 0; part < num_threads_; ++part)
    wait_for(arrivals_[part].count, arrival, spin_us_);
}

uint32_t ThreadPool::wait_for(const std::atomic<uint32_t>& count, uint32_t least,
                              int spin_us) const noexcept {
  // The clock is looked at every few microseconds, and not by those who need not wait as long.
  constexpr int kPausesPerLook = 64;
  uint32_t now = count.load(std::memory_order_acquire);
  auto spin = [&] {
    for (int i = 0; i < kPausesPerLook && !has_reached(now, least); ++i) {
      pause();
      now = count.load(std::memory_order_acquire);
    }
    return !has_reached(now, least);
  };
  if (spin_us > 0 && spin()) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::microseconds(spin_us);
    while (spin() && std::chrono::steady_clock::now() < deadline) {
    }
  }
  while (!has_reached(now = count.load(std::memory_order_acquire), least)) {
    count.wait(now, std::memory_order_acquire);
  }
  return now;
}

}  // namespace stagebeam
