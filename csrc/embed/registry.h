// Every engine and question that a process has open behind the C ABI, found by id.
//
// Owns the tables and each question's event queue; does not know C structs, Python or what an
// engine is made of. Thread-safe: a call that races with a destroy gets an error or its result,
// never a freed object.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>

#include "backend.h"
#include "handle_table.h"

namespace stagebeam::embed {

struct RegistryStats {
  EngineStats engine;
  int64_t num_questions = 0;  // of this engine, not yet destroyed
  int64_t num_running = 0;    // of these, whose last event has not come
};

class Registry {
 public:
  explicit Registry(Backend& backend) : backend_(backend) {}

  Status create_engine(const EngineSpec& spec, HandleId& engine);
  Status submit(HandleId engine, const QuestionSpec& spec, HandleId& question);
  // kTimeout, kEnd, or kCancelled where another thread destroyed the question meanwhile.
  Status next(HandleId question, std::optional<std::chrono::milliseconds> timeout, Event& event);
  Status cancel(HandleId question);
  Status stats(HandleId engine, RegistryStats& stats);
  // A running question is cancelled; who waits on it wakes.
  Status destroy_question(HandleId question);
  // Every question of the engine ends; their handles stay until they are destroyed.
  Status destroy_engine(HandleId engine);

  // For the end of the process: close what is open, keep every handle.
  void close_all();

 private:
  struct OpenEngine {
    std::unique_ptr<HostedEngine> engine;
    std::atomic<int64_t> num_questions{0};
  };
  struct OpenQuestion {
    OpenQuestion(std::shared_ptr<OpenEngine> owner, HandleId owner_id);
    ~OpenQuestion();
    const std::shared_ptr<OpenEngine> engine;
    const HandleId engine_id;
    const std::shared_ptr<EventQueue> queue = std::make_shared<EventQueue>();
    std::unique_ptr<RunningQuestion> running;
  };

  Backend& backend_;
  HandleTable<OpenEngine> engines_{1};
  HandleTable<OpenQuestion> questions_{2};
};

}  // namespace stagebeam::embed
