// Many questions through the C++ header, some cancelled, some never read; what is left is counted.
//   soak CHECKPOINT IMAGE NUM_QUESTIONS NUM_IN_FLIGHT
// Prints a line of JSON an answer, then {"resident_bytes": [ten readings], "stats": {...}}.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <iostream>
#include <stagebeam.hpp>
#include <string>
#include <vector>

namespace {

long resident_bytes() {
  long total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

struct Asked {
  int number;
  stagebeam::Question question;
};

// Every seventh is cancelled after its first event, every eleventh dropped unread.
void finish(Asked asked, bool is_gentle) {
  if (!is_gentle && asked.number % 11 == 10) return;
  if (!is_gentle && asked.number % 7 == 6) {
    asked.question.next();
    asked.question.cancel();
    while (asked.question.next()) {
    }
    return;
  }
  std::cout << asked.question.answer().json << "\n";
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 5) return 2;
  const std::string image = argv[2];
  const int num_questions = std::atoi(argv[3]), num_in_flight = std::atoi(argv[4]);
  const bool is_gentle = num_questions <= num_in_flight;
  stagebeam::Engine engine({.path = argv[1], .kv_cache_bytes = 4 << 20, .num_threads = 1});
  std::deque<Asked> asked;
  std::vector<long> readings;
  for (int i = 0; i < num_questions; ++i) {
    if (static_cast<int>(asked.size()) == num_in_flight) {
      finish(std::move(asked.front()), is_gentle);
      asked.pop_front();
    }
    stagebeam::QuestionOptions options{.beam_size = 3,
                                       .temperature = 1.0,
                                       .top_p = 1.0,
                                       .top_k = 0,
                                       .max_tokens = 40,
                                       .seed = static_cast<std::uint64_t>(i)};
    asked.push_back({i, engine.submit("how many?", stagebeam::Image::file(image), options)});
    if ((i + 1) % std::max(1, num_questions / 10) == 0) readings.push_back(resident_bytes());
  }
  for (auto& last : asked) finish(std::move(last), is_gentle);
  asked.clear();
  stagebeam_stats stats = engine.stats();
  for (int i = 0; i < 1000 && stats.num_free_blocks != stats.num_blocks; ++i) {
    usleep(10'000);  // a dropped question is freed soon after
    stats = engine.stats();
  }
  std::cout << "{\"resident_bytes\": [";
  for (size_t i = 0; i < readings.size(); ++i) std::cout << (i ? ", " : "") << readings[i];
  std::cout << "], \"num_questions\": " << stats.num_questions
            << ", \"num_running\": " << stats.num_running
            << ", \"num_held_blocks\": " << stats.num_blocks - stats.num_free_blocks
            << ", \"num_images_in_use\": " << stats.num_images_in_use << "}\n";
} catch (const stagebeam::Error& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
