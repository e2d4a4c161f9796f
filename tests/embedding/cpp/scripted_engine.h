// An engine without a model: each question is a script that one thread plays, as the real loop
// does.
//
// The question's text says how: "tokens=40" (a candidate; default 8), "candidates=2" (default 2),
// "slow" (a millisecond a step), "refuse" (a capacity error at submit), "fail" (ends in an error).
// The engine path "missing" is a checkpoint error.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "../../../csrc/embed/backend.h"

namespace stagebeam::embed {

struct Script {
  std::shared_ptr<EventSink> sink;
  int num_tokens = 8;
  int num_candidates = 2;
  bool is_slow = false;
  bool is_failing = false;
  std::atomic<bool> is_cancelled{false};
  int step = 0;
};

inline Event make_event(EventType type, int candidate = -1, std::string text = "") {
  Event event;
  event.type = type;
  event.stage = event.is_last() ? "" : "summary";
  event.candidate = candidate;
  event.text = std::move(text);
  return event;
}

inline Event failed(StatusCode code, std::string why) {
  Event event = make_event(EventType::kFailed, -1, std::move(why));
  event.status = code;
  return event;
}

// Plays one step of a script; false when it has ended.
inline bool play(Script& script, bool is_closing) {
  if (script.is_cancelled || is_closing) {
    script.sink->push(failed(StatusCode::kCancelled, "cancelled"));
    return false;
  }
  const int step = script.step++;
  if (step == 0) {
    Event event = make_event(EventType::kStageStarted);
    event.num_candidates = script.num_candidates;
    script.sink->push(std::move(event));
    return true;
  }
  if (step <= script.num_tokens) {
    for (int i = 0; i < script.num_candidates; ++i) {
      script.sink->push(make_event(EventType::kTokenText, i, std::to_string(step) + " "));
    }
    return true;
  }
  if (script.is_failing) {
    script.sink->push(failed(StatusCode::kInternal, "as the script says"));
    return false;
  }
  for (int i = 0; i < script.num_candidates; ++i) {
    script.sink->push(make_event(EventType::kCandidateFinished, i));
  }
  script.sink->push(make_event(EventType::kStageCommitted));
  script.sink->push(make_event(EventType::kDone, -1, "an answer"));
  return false;
}

class ScriptedQuestion final : public RunningQuestion {
 public:
  explicit ScriptedQuestion(std::shared_ptr<Script> script) : script_(std::move(script)) {}
  void cancel() noexcept override { script_->is_cancelled = true; }

 private:
  std::shared_ptr<Script> script_;
};

class ScriptedEngine final : public HostedEngine {
 public:
  ScriptedEngine() : thread_([this] { run(); }) {}
  ~ScriptedEngine() override { close(); }

  Status submit(const QuestionSpec& spec, std::shared_ptr<EventSink> sink,
                std::unique_ptr<RunningQuestion>& question) noexcept override {
    if (spec.text == "refuse") return {StatusCode::kCapacity, "as the script says"};
    auto script = std::make_shared<Script>();
    script->sink = std::move(sink);
    script->num_tokens = number(spec.text, "tokens=", 8);
    script->num_candidates = number(spec.text, "candidates=", 2);
    script->is_slow = spec.text.find("slow") != std::string::npos;
    script->is_failing = spec.text.find("fail") != std::string::npos;
    {
      const std::lock_guard guard(mutex_);
      if (is_closed_) return {StatusCode::kCancelled, "the engine is closed"};
      scripts_.push_back(script);
    }
    changed_.notify_one();
    question = std::make_unique<ScriptedQuestion>(std::move(script));
    return {};
  }

  Status stats(EngineStats& stats) noexcept override {
    const std::lock_guard guard(mutex_);
    stats.num_sequences = static_cast<int64_t>(scripts_.size());
    return {};
  }

  void close() noexcept override {
    {
      const std::lock_guard guard(mutex_);
      is_closed_ = true;
    }
    changed_.notify_one();
    const std::lock_guard guard(join_mutex_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  static int number(const std::string& text, const std::string& name, int otherwise) {
    const size_t at = text.find(name);
    return at == std::string::npos ? otherwise : std::atoi(text.c_str() + at + name.size());
  }

  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return is_closed_ || !scripts_.empty(); });
      std::list<std::shared_ptr<Script>> turn = scripts_;
      const bool is_closing = is_closed_;
      lock.unlock();
      bool is_slow = false;
      std::list<std::shared_ptr<Script>> ended;
      for (const auto& script : turn) {
        is_slow |= script->is_slow;
        if (!play(*script, is_closing)) ended.push_back(script);
      }
      if (is_slow) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      lock.lock();
      for (const auto& script : ended) scripts_.remove(script);
      if (is_closing && scripts_.empty()) return;
    }
  }

  std::mutex mutex_;
  std::mutex join_mutex_;
  std::condition_variable changed_;
  std::list<std::shared_ptr<Script>> scripts_;
  bool is_closed_ = false;
  std::thread thread_;
};

class ScriptedBackend final : public Backend {
 public:
  Status open(const EngineSpec& spec, std::unique_ptr<HostedEngine>& engine) noexcept override {
    if (spec.path == "missing") return {StatusCode::kCheckpoint, "no folder of that name"};
    engine = std::make_unique<ScriptedEngine>();
    return {};
  }
};

}  // namespace stagebeam::embed
