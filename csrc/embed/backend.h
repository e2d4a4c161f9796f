// What the C ABI needs of an engine, without saying what the engine is made of.
//
// Two backends stand behind it: the Python engine, hosted in this process, and a scripted one for
// tests. No exception crosses these calls; they come from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "event_queue.h"
#include "status.h"

namespace stagebeam::embed {

// An empty text or a nullopt is the engine's own default.
struct EngineSpec {
  std::string path;
  std::string python;
  std::string device;
  std::string dtype;
  std::string backend;
  std::optional<int64_t> max_model_len;
  std::optional<int64_t> kv_cache_bytes;
  std::optional<int64_t> max_branches;
  std::optional<uint64_t> seed;
  std::optional<int64_t> num_threads;
};

enum class ImageKind : int32_t { kNone = 0, kPath = 1, kEncoded = 2, kRgb = 3 };

// The caller's memory, read during `submit` only.
struct ImageView {
  ImageKind kind = ImageKind::kNone;
  const char* path = nullptr;
  const uint8_t* data = nullptr;
  size_t size = 0;           // bytes, for kEncoded and kRgb
  int32_t width = 0;         // pixels, for kRgb
  int32_t height = 0;        // rows
  int64_t stride_bytes = 0;  // from one row to the next
};

struct QuestionSpec {
  std::string text;
  ImageView image;
  std::string strategy;
  std::optional<int64_t> beam_size;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;
  std::optional<double> min_p;
  std::optional<int64_t> max_tokens;
  std::optional<uint64_t> seed;
  std::string judge_mode;
  std::string tournament;
  std::optional<double> deadline_seconds;
};

struct EngineStats {
  int64_t num_blocks = 0;
  int64_t num_free_blocks = 0;
  int64_t num_reserved_blocks = 0;
  int64_t num_sequences = 0;
  int64_t num_image_slots = 0;
  int64_t num_images_in_use = 0;
};

class RunningQuestion {
 public:
  virtual ~RunningQuestion() = default;
  virtual void cancel() noexcept = 0;  // its events end soon after; no effect once they have
};

class HostedEngine {
 public:
  virtual ~HostedEngine() = default;
  virtual Status submit(const QuestionSpec& spec, std::shared_ptr<EventSink> sink,
                        std::unique_ptr<RunningQuestion>& question) noexcept = 0;
  virtual Status stats(EngineStats& stats) noexcept = 0;
  virtual void close() noexcept = 0;  // ends every question's events; later calls are kCancelled
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual Status open(const EngineSpec& spec, std::unique_ptr<HostedEngine>& engine) noexcept = 0;
};

}  // namespace stagebeam::embed
