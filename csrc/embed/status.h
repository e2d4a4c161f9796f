// How a call across the C ABI ended: a code and, where it failed, a sentence.
#pragma once

#include <cstdint>
#include <string>

namespace stagebeam::embed {

enum class StatusCode : int32_t {
  kOk = 0,
  kInvalidArgument = 1,  // a null pointer, a wrong size, a value out of range
  kInvalidHandle = 2,    // never given out, or destroyed
  kImage = 3,            // an image that cannot be read or does not fit the model
  kCheckpoint = 4,       // a model folder that cannot be used
  kCapacity = 5,         // can never fit in the caches or the context
  kCancelled = 6,        // the question was cancelled or its engine destroyed
  kTimeout = 7,          // no event within the time given
  kEnd = 8,              // the last event has been taken
  kEnvironment = 9,      // no usable Python environment
  kInternal = 10,        // a fault of the library's
  kDeadline = 11,        // the question's own deadline passed
};

struct Status {
  StatusCode code = StatusCode::kOk;
  std::string message;

  bool is_ok() const { return code == StatusCode::kOk; }
};

}  // namespace stagebeam::embed
