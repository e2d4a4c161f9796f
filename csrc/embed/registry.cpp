#include "registry.h"

#include <utility>

namespace stagebeam::embed {

namespace {

Status no_handle(const char* kind, HandleId id) {
  return {StatusCode::kInvalidHandle, std::string("no ") + kind + " has the handle " +
                                          std::to_string(id) +
                                          ": it was never given out or has been destroyed"};
}

}  // namespace

Registry::OpenQuestion::OpenQuestion(std::shared_ptr<OpenEngine> owner, HandleId owner_id)
    : engine(std::move(owner)), engine_id(owner_id) {
  ++engine->num_questions;
}

Registry::OpenQuestion::~OpenQuestion() {
  --engine->num_questions;
}

Status Registry::create_engine(const EngineSpec& spec, HandleId& engine) {
  auto opened = std::make_shared<OpenEngine>();
  Status status = backend_.open(spec, opened->engine);
  if (!status.is_ok()) return status;
  engine = engines_.insert(std::move(opened));
  if (engine == kNoHandle) return {StatusCode::kCapacity, "too many engines are open"};
  return {};
}

Status Registry::submit(HandleId engine, const QuestionSpec& spec, HandleId& question) {
  const auto opened = engines_.find(engine);
  if (!opened) return no_handle("engine", engine);
  auto asked = std::make_shared<OpenQuestion>(opened, engine);
  Status status = opened->engine->submit(spec, asked->queue, asked->running);
  if (!status.is_ok()) return status;
  const HandleId id = questions_.insert(asked);
  if (id == kNoHandle) {
    asked->running->cancel();
    return {StatusCode::kCapacity, "too many questions are open; destroy those that have ended"};
  }
  question = id;
  return {};
}

Status Registry::next(HandleId question, std::optional<std::chrono::milliseconds> timeout,
                      Event& event) {
  const auto asked = questions_.find(question);
  if (!asked) return no_handle("question", question);
  switch (asked->queue->next(timeout, event)) {
    case EventQueue::Next::kEvent:
      return {};
    case EventQueue::Next::kTimeout:
      return {StatusCode::kTimeout, "no event within the time given; the question goes on"};
    case EventQueue::Next::kEnd:
      return {StatusCode::kEnd, "the question's last event has been taken"};
    case EventQueue::Next::kClosed:
      break;
  }
  return {StatusCode::kCancelled, "the question was destroyed while this call waited"};
}

Status Registry::cancel(HandleId question) {
  const auto asked = questions_.find(question);
  if (!asked) return no_handle("question", question);
  asked->running->cancel();
  return {};
}

Status Registry::stats(HandleId engine, RegistryStats& stats) {
  const auto opened = engines_.find(engine);
  if (!opened) return no_handle("engine", engine);
  Status status = opened->engine->stats(stats.engine);
  if (!status.is_ok()) return status;
  stats.num_questions = opened->num_questions;
  stats.num_running = 0;
  for (const auto& asked : questions_.all()) {
    stats.num_running += asked->engine_id == engine && !asked->queue->has_ended();
  }
  return {};
}

Status Registry::destroy_question(HandleId question) {
  const auto asked = questions_.remove(question);
  if (!asked) return no_handle("question", question);
  if (!asked->queue->has_ended()) asked->running->cancel();
  asked->queue->close();
  return {};
}

Status Registry::destroy_engine(HandleId engine) {
  const auto opened = engines_.remove(engine);
  if (!opened) return no_handle("engine", engine);
  opened->engine->close();
  return {};
}

void Registry::close_all() {
  for (const auto& opened : engines_.all()) opened->engine->close();
}

}  // namespace stagebeam::embed
