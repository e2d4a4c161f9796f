// The engine's Python events as the C ABI's: one attribute read a field, on the engine's thread.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "../../csrc/embed/event.h"

namespace stagebeam::embed {

class EventReader {
 public:
  EventReader()
      : token_text_(events().attr("TokenText")),
        event_to_dict_(events().attr("event_to_dict")),
        dumps_(pybind11::module_::import("json").attr("dumps")) {}

  // event: one of engine/events.py's; the GIL is held
  Event read(pybind11::handle event) const {
    Event out;
    if (pybind11::type::handle_of(event).is(token_text_)) {
      read_token(event, out);
      return out;
    }
    const auto type = event.attr("type").cast<std::string>();
    if (type == "stage_started") {
      out.type = EventType::kStageStarted;
      out.round = event.attr("round").cast<int32_t>();
      out.first_candidate = event.attr("first_candidate").cast<int32_t>();
      out.num_candidates = event.attr("num_candidates").cast<int32_t>();
    } else if (type == "candidate_finished") {
      out.type = EventType::kCandidateFinished;
      out.round = event.attr("round").cast<int32_t>();
      out.candidate = event.attr("candidate").cast<int32_t>();
      out.finish_reason = event.attr("finish_reason").cast<std::string>();
    } else if (type == "match_judged") {
      const pybind11::object match = event.attr("match");
      out.type = EventType::kMatchJudged;
      out.first = match.attr("first").cast<int32_t>();
      out.second = match.attr("second").cast<int32_t>();
      out.winner = match.attr("winner").cast<int32_t>();
      out.probability = match.attr("probability").cast<double>();
    } else if (type == "stage_committed") {
      out.type = EventType::kStageCommitted;
      out.winner = event.attr("winner").cast<int32_t>();
      out.text = event.attr("text").cast<std::string>();
    } else if (type == "done") {
      const pybind11::object answer = event.attr("answer");
      out.type = EventType::kDone;
      out.text = answer.attr("conclusion").cast<std::string>();
      out.finish_reason = answer.attr("finish_reason").cast<std::string>();
    } else {
      out.type = EventType::kFailed;
      out.status = status_of(event.attr("code").cast<std::string>());
      out.text = event.attr("error").cast<std::string>();
    }
    if (!out.is_last()) out.stage = event.attr("stage").cast<std::string>();
    out.json = dumps_(event_to_dict_(event)).cast<std::string>();
    return out;
  }

 private:
  static pybind11::module_ events() { return pybind11::module_::import("stagebeam.engine.events"); }

  static void read_token(pybind11::handle event, Event& out) {
    out.type = EventType::kTokenText;
    out.stage = event.attr("stage").cast<std::string>();
    out.round = event.attr("round").cast<int32_t>();
    out.candidate = event.attr("candidate").cast<int32_t>();
    out.text = event.attr("text").cast<std::string>();
    for (const pybind11::handle id : pybind11::tuple(event.attr("token_ids"))) {
      out.token_ids.push_back(id.cast<int32_t>());
    }
    for (const pybind11::handle logprob : pybind11::tuple(event.attr("logprobs"))) {
      out.logprobs.push_back(logprob.cast<double>());
    }
  }

  static StatusCode status_of(const std::string& code) {
    if (code == "cancelled") return StatusCode::kCancelled;
    if (code == "deadline") return StatusCode::kDeadline;
    if (code == "capacity") return StatusCode::kCapacity;
    if (code == "invalid") return StatusCode::kInvalidArgument;
    return StatusCode::kInternal;
  }

  const pybind11::object token_text_;
  const pybind11::object event_to_dict_;
  const pybind11::object dumps_;
};

}  // namespace stagebeam::embed
