// What happens while a question runs, as it waits for a consumer on the other side of the C ABI.
//
// The kinds and their fields are the engine's events (engine/events.py).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "status.h"

namespace stagebeam::embed {

enum class EventType : int32_t {
  kStageStarted = 1,
  kTokenText = 2,
  kCandidateFinished = 3,
  kMatchJudged = 4,
  kStageCommitted = 5,
  kDone = 6,
  kFailed = 7,
};

struct Event {
  EventType type = EventType::kFailed;
  StatusCode status = StatusCode::kOk;  // kFailed: why
  int32_t num_candidates = 0;
  int32_t first_candidate = 0;
  int32_t round = 0;
  int32_t candidate = -1;
  int32_t first = -1;
  int32_t second = -1;
  int32_t winner = -1;
  double probability = 0.0;
  std::string stage;
  std::string text;
  std::string finish_reason;
  std::vector<int32_t> token_ids;  // kTokenText: the tokens that the text completes
  std::vector<double> logprobs;    // one a token
  std::string json;                // the whole event; made from the fields for kTokenText

  bool is_last() const { return type == EventType::kDone || type == EventType::kFailed; }
};

// A token's event as one JSON object, as Python's `event_to_dict` has it.
std::string token_json(const Event& event);

}  // namespace stagebeam::embed
