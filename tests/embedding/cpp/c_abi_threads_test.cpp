// Threads that submit, take, cancel and destroy at random, each other's handles too: nothing but
// status codes may come of it. Run under TSan and ASan.
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "../../../bindings/c/stagebeam.h"
#include "../../../csrc/tests/check.h"

namespace {

constexpr int kNumThreads = 6;
constexpr int kNumCalls = 1500;
constexpr size_t kNumPlaces = 12;

struct Places {
  std::array<std::atomic<uint64_t>, kNumPlaces> handles{};
};

bool is_status(stagebeam_status status) {
  return status >= STAGEBEAM_OK && status <= STAGEBEAM_DEADLINE_ERROR &&
         status != STAGEBEAM_INTERNAL_ERROR;
}

void call_at_random(Places& engines, Places& questions, unsigned seed) {
  std::mt19937 random(seed);
  const auto pick = [&random](uint64_t n) { return static_cast<size_t>(random() % n); };
  const auto any = [&](Places& places) {
    const uint64_t handle = places.handles[pick(kNumPlaces)];
    return pick(10) == 0 ? handle ^ (uint64_t{1} << pick(64)) : handle;
  };
  constexpr std::array kTexts = {"tokens=3", "tokens=200", "fail", "refuse", "candidates=5 slow"};
  stagebeam_event event{};
  stagebeam_stats stats{};
  for (int i = 0; i < kNumCalls; ++i) {
    stagebeam_status status = STAGEBEAM_OK;
    uint64_t handle = 0;
    switch (pick(16)) {
      case 0:
        status = stagebeam_engine_create(nullptr, &handle);
        handle = engines.handles[pick(kNumPlaces)].exchange(handle);
        stagebeam_engine_destroy(handle);
        break;
      case 1:
        status = stagebeam_engine_destroy(any(engines));
        break;
      case 2:
        stats.size = pick(8) ? sizeof(stats) : pick(200);
        status = stagebeam_engine_stats(any(engines), &stats);
        break;
      case 3:
        status = stagebeam_question_cancel(any(questions));
        break;
      case 4:
        status = stagebeam_question_destroy(any(questions));
        break;
      case 5:
      case 6:
      case 7:
      case 8: {
        const char* text = pick(20) ? kTexts[pick(kTexts.size())] : nullptr;
        status = stagebeam_submit(any(engines), text, nullptr, nullptr, &handle);
        if (status == STAGEBEAM_OK) {
          stagebeam_question_destroy(questions.handles[pick(kNumPlaces)].exchange(handle));
        }
        break;
      }
      default:
        event.size = pick(20) ? sizeof(event) : pick(200);
        status = stagebeam_question_next(any(questions), static_cast<int64_t>(pick(3)),
                                         pick(30) ? &event : nullptr);
    }
    CHECK(is_status(status));
  }
}

}  // namespace

TEST(calls_at_random_from_many_threads) {
  Places engines, questions;
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&, t] { call_at_random(engines, questions, t); });
  }
  for (auto& thread : threads) thread.join();
  for (auto& place : questions.handles) stagebeam_question_destroy(place);
  for (auto& place : engines.handles) stagebeam_engine_destroy(place);
}

TEST(many_questions_in_flight_from_many_threads) {
  stagebeam_engine engine = 0;
  CHECK(stagebeam_engine_create(nullptr, &engine) == STAGEBEAM_OK);
  std::atomic<int> num_done{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kNumThreads; ++t) {
    threads.emplace_back([&] {
      std::array<stagebeam_question, 8> questions{};
      for (auto& question : questions) {
        CHECK(stagebeam_submit(engine, "tokens=30", nullptr, nullptr, &question) == STAGEBEAM_OK);
      }
      stagebeam_event event{};
      event.size = sizeof(event);
      for (const auto question : questions) {
        int num_pieces = 0;
        while (stagebeam_question_next(question, -1, &event) == STAGEBEAM_OK) {
          num_pieces += event.type == STAGEBEAM_TOKEN_TEXT;
        }
        num_done += event.type == STAGEBEAM_DONE && num_pieces == 60;
        CHECK(stagebeam_question_destroy(question) == STAGEBEAM_OK);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(num_done == kNumThreads * 8);
  stagebeam_stats stats{};
  stats.size = sizeof(stats);
  CHECK(stagebeam_engine_stats(engine, &stats) == STAGEBEAM_OK);
  CHECK(stats.num_questions == 0 && stats.num_running == 0);
  CHECK(stagebeam_engine_destroy(engine) == STAGEBEAM_OK);
}

TEST(a_destroy_wakes_the_thread_that_waits) {
  stagebeam_engine engine = 0;
  CHECK(stagebeam_engine_create(nullptr, &engine) == STAGEBEAM_OK);
  stagebeam_question question = 0;
  CHECK(stagebeam_submit(engine, "tokens=1000000 slow", nullptr, nullptr, &question) ==
        STAGEBEAM_OK);
  stagebeam_status last = STAGEBEAM_OK;
  std::thread waiting([&] {
    stagebeam_event event{};
    event.size = sizeof(event);
    while ((last = stagebeam_question_next(question, -1, &event)) == STAGEBEAM_OK) {
    }
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK(stagebeam_question_destroy(question) == STAGEBEAM_OK);
  waiting.join();
  CHECK(last == STAGEBEAM_CANCELLED || last == STAGEBEAM_INVALID_HANDLE);
  CHECK(stagebeam_engine_destroy(engine) == STAGEBEAM_OK);
}
