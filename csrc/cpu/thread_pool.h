// A pool of threads for parallel regions with barriers inside: a whole decode step is one region.
//
// The caller is part 0. Waiting threads spin for a bounded time and then sleep in the kernel, so a
// quiet pool costs nothing and a step's barriers cost well under a microsecond. It knows nothing of
// the work. Invariant: between runs every worker waits, and no part of a region outlives `run`.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace stagebeam {

class ThreadPool {
 public:
  static constexpr int kDefaultSpinUs = 100;
  // Between two runs a worker spins this many times as long, since the loop that calls the next
  // step takes 60 to 400 us in between, and waking a thread 60, half of them the caller's.
  static constexpr int kIdleSpins = 10;

  // num_threads counts the caller: 1 starts none. spin_us is how long a thread spins before it
  // sleeps, per barrier; a pool with more threads than the process has processors never spins.
  // Throws std::invalid_argument where num_threads < 1 or spin_us < 0.
  explicit ThreadPool(int num_threads, int spin_us = kDefaultSpinUs);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }
  // Whether a thread may stay busy while it waits.
  bool can_spin() const { return spin_us_ > 0; }

  // Calls fn(part, parts) once for each part in 0 .. parts - 1, at the same time, and returns when
  // all have returned; what they wrote is then visible. `fn` must not throw (an exception ends the
  // process) and must not call run. Calls from several threads take turns. Throws
  // std::runtime_error in a child process after fork, where the threads are gone, and
  // std::logic_error inside a region.
  template <typename F>
  void run(F&& fn) {
    using Fn = std::remove_reference_t<F>;
    run_task([](void* context, int part, int parts) { (*static_cast<Fn*>(context))(part, parts); },
             const_cast<std::remove_const_t<Fn>*>(&fn));
  }

  // Inside a region: returns when every part has called it as often as this one. What any part
  // wrote before is visible to all after. All parts must call it the same number of times.
  void barrier() noexcept { wait(arrive()); }
  // The same in two parts, for work in between that nobody waits for: the barrier is over once
  // is_open(arrive()) is true, and wait returns then.
  uint32_t arrive() noexcept;
  bool is_open(uint32_t arrival) const noexcept;
  void wait(uint32_t arrival) const noexcept;

 private:
  using Task = void (*)(void* context, int part, int parts);

  void run_task(Task task, void* context);
  void work(int part);
  void execute(Task task, void* context, int part) noexcept;
  uint32_t wait_for(const std::atomic<uint32_t>& count, uint32_t least, int spin_us) const noexcept;

  // How often a part has arrived at a barrier. It alone writes it, the others read it: two lines
  // apart, since processors fetch them in pairs.
  struct alignas(128) Arrivals {
    std::atomic<uint32_t> count{0};
  };

  const int num_threads_;
  const int spin_us_;
  const uint32_t birth_;  // forks before it
  std::mutex run_mutex_;
  // Written before epoch_ moves on, read after; away from the lock, which is the callers' alone.
  alignas(64) Task task_ = nullptr;
  void* context_ = nullptr;
  bool is_stopping_ = false;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  std::unique_ptr<Arrivals[]> arrivals_;  // [num_threads]
  std::unique_ptr<std::vector<std::thread>> workers_;
};

}  // namespace stagebeam
