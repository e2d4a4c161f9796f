#include "../../cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../check.h"

namespace stagebeam {
namespace {

TEST(every_part_runs_once_and_barriers_order_what_they_wrote) {
  for (const int threads : {1, 2, 3, 7}) {
    for (const int spin_us : {0, 50}) {
      ThreadPool pool(threads, spin_us);
      std::vector<int> values(threads), seen(threads);
      for (int round = 0; round < 50; ++round) {
        pool.run([&](int part, int parts) {
          for (int step = 0; step < 5; ++step) {
            values[part] = round * 10 + step;
            pool.barrier();
            seen[part] += values[(part + 1) % parts] == round * 10 + step;
            pool.barrier();
          }
        });
      }
      for (const int count : seen) CHECK(count == 250);
    }
  }
}

TEST(a_barrier_in_two_parts_opens_when_all_have_arrived) {
  for (const int threads : {1, 2, 5}) {
    for (const int spin_us : {0, 50}) {
      ThreadPool pool(threads, spin_us);
      CHECK(!pool.can_spin() || spin_us > 0);
      std::atomic<bool> may_arrive{false};
      std::vector<int> values(threads), opened_early(threads), opened(threads), seen(threads);
      pool.run([&](int part, int parts) {
        if (part + 1 == parts) {  // the others arrive, and do something, before the last
          while (!may_arrive && parts > 1) std::this_thread::yield();
        }
        values[part] = part + 1;
        const uint32_t arrival = pool.arrive();
        if (part == 0) {
          opened_early[part] = parts > 1 && pool.is_open(arrival);
          may_arrive = true;
        }
        pool.wait(arrival);
        opened[part] = pool.is_open(arrival);
        seen[part] = values[(part + 1) % parts];
      });
      for (int part = 0; part < threads; ++part) {
        CHECK(opened_early[part] == 0 && opened[part] != 0);
        CHECK(seen[part] == (part + 1) % threads + 1);
      }
    }
  }
}

TEST(sleeping_threads_wake_up) {
  ThreadPool pool(3, 10);
  std::atomic<int> runs{0};
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    pool.run([&](int part, int) {
      if (part == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      pool.barrier();
      ++runs;
    });
  }
  CHECK(runs == 15);
}

TEST(callers_take_turns) {
  ThreadPool pool(2);
  int total = 0;  // guarded by the turns
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        pool.run([&](int part, int) {
          if (part == 0) ++total;
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(total == 80);
}

TEST(a_nested_run_is_refused) {
  ThreadPool pool(2);
  std::atomic<int> refused{0};
  pool.run([&](int, int) {
    try {
      pool.run([](int, int) {});
    } catch (const std::logic_error&) {
      ++refused;
    }
  });
  CHECK(refused == 2);
  CHECK_THROWS(ThreadPool(0));
  CHECK_THROWS(ThreadPool(2, -1));
}

}  // namespace
}  // namespace stagebeam
