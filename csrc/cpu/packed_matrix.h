// A weight matrix [out_features, in_features] in the order in which the products read it.
//
// 16 output rows make a panel, its words (32 bits) interleaved along K: one cache line holds, for
// each of the 16 rows, the next 1, 2, 4 or 8 weights. So a product streams a panel once, from front
// to end, and keeps 16 sums side by side: no sum over K is ever split. The layout is the same for
// every instruction set. Packing is row by row and in place, so no second copy is ever held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "weight_streams.h"

namespace stagebeam {

enum class WeightFormat {
  kFloat32,
  kBf16,  // to nearest even
  kInt8,  // groups of 32 along K: weight = q * scale, q in -127 .. 127, scale in bf16
  kInt4,  // groups of 32 along K: weight = q * step + least, q in 0 .. 15, both in half precision
};
const char* weight_format_name(WeightFormat format);  // "float32", "bf16", "int8", "int4"
WeightFormat parse_weight_format(const char* name);   // throws std::invalid_argument

enum class SourceType { kFloat32, kBf16, kFp16 };

// The order of output rows over panels.
enum class RowOrder {
  kPlain,
  // Rows 0 .. n/2 - 1 are the gate's, the rest the up projection's: 16 gate rows and their 16 up
  // rows make neighbouring panels, for the SiLU epilogue.
  kGateUp,
};

// What weights meet. Those in float32 always take float32.
enum class Activations {
  // Rounded as the weights are: to int8 in groups of kGroupSize for int8 and int4 (exact integer
  // products), to bf16 for bf16 where the machine multiplies bf16, else float32.
  kRounded,
  kFloat32,
};

inline constexpr int kPanelRows = 16;
inline constexpr int kGroupSize = 32;  // weights along K that share a scale
inline constexpr int kLineBytes = 64;  // one word for each row of a panel
inline constexpr int kSumBlock = 256;  // partial sums over K have this many terms
// Half precision has few small numbers: 4-bit steps and leasts are stored times this.
inline constexpr float kInt4Factor = 256.0f;

// Sizes of one format's blocks: a block is [scales] [lines of words], its lines 64-byte aligned.
struct PanelLayout {
  int word_k;       // weights of one row in a word
  int block_k;      // weights of one row in a block
  int scale_bytes;  // kInt8: 16 bf16 scales for each of two groups; kInt4: 16 steps, 16 leasts

  constexpr int block_bytes() const { return scale_bytes + block_k / word_k * kLineBytes; }
};
constexpr PanelLayout panel_layout(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return {2, 2, 0};
    case WeightFormat::kInt8:
      return {4, 64, 64};
    case WeightFormat::kInt4:
      return {8, 32, 64};
    case WeightFormat::kFloat32:
      break;
  }
  return {1, 1, 0};
}

class PackedMatrix {
 public:
  PackedMatrix() = default;
  // All weights zero. With `streams`, which must outlive the matrix, share i of the panels is in
  // stream i. Throws std::invalid_argument for negative sizes or an odd number of rows in kGateUp
  // order, std::bad_alloc.
  PackedMatrix(int64_t out_features, int64_t in_features, WeightFormat format,
               RowOrder order = RowOrder::kPlain, Activations activations = Activations::kRounded,
               WeightStreams* streams = nullptr);
  ~PackedMatrix();
  PackedMatrix(PackedMatrix&& other) noexcept { swap(other); }
  PackedMatrix& operator=(PackedMatrix&& other) noexcept {
    swap(other);
    return *this;
  }

  // Packs rows first_row .. first_row + num_rows - 1 (in the checkpoint's order) from `source`
  // [num_rows, in_features], its rows `stride` elements apart, any alignment. Several threads may
  // pack different rows. Throws std::invalid_argument for rows out of range, and for weights
  // that are not within +-255 in kInt4, within +-1e37 in kInt8.
  void pack_rows(int64_t first_row, int64_t num_rows, const void* source, SourceType type,
                 int64_t stride);

  // The weights that the products use, as float32 [num_rows, in_features], rows `stride` apart.
  void unpack_rows(int64_t first_row, int64_t num_rows, float* out, int64_t stride) const;

  // Asks for the cache lines that unpack_rows reads of one row: the next step's thread has them.
  void ask_for_row(int64_t row) const;

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  WeightFormat format() const { return format_; }
  RowOrder order() const { return order_; }
  // Whether products may round their activations.
  bool rounds_activations() const {
    return activations_ == Activations::kRounded && format_ != WeightFormat::kFloat32;
  }
  int64_t num_panels() const { return num_panels_; }
  size_t panel_bytes() const { return panel_bytes_; }
  size_t num_bytes() const { return num_panels_ * panel_bytes_; }
  // The first panel of share `share` of `shares`; gate and up panels stay together.
  int64_t first_panel(int64_t share, int64_t shares) const {
    if (share == shares) return num_panels_;
    if (has_run_for_each(shares)) return runs_[share].first;
    const int64_t unit = order_ == RowOrder::kGateUp ? 2 : 1;
    return num_panels_ / unit * share / shares * unit;
  }
  // Panels that lie behind each other, `data` that of panel `first`.
  struct Run {
    int64_t first, end;
    std::byte* data;
  };
  const std::vector<Run>& runs() const { return runs_; }
  // Where the first panel of a share is; for one without panels, somewhere in the matrix or null.
  const std::byte* share(int64_t share, int64_t shares) const;

 private:
  struct Place {
    std::byte* panel;
    int lane;
  };
  Place place(int64_t row) const;
  std::byte* panel_at(int64_t panel) const;
  // Whether the runs are these shares: the usual case, without a division.
  bool has_run_for_each(int64_t shares) const {
    return static_cast<int64_t>(runs_.size()) == shares;
  }
  void check_rows(int64_t first_row, int64_t num_rows) const;
  void swap(PackedMatrix& other) noexcept;

  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  WeightFormat format_ = WeightFormat::kFloat32;
  RowOrder order_ = RowOrder::kPlain;
  Activations activations_ = Activations::kRounded;
  int64_t num_panels_ = 0;
  size_t panel_bytes_ = 0;
  std::vector<Run> runs_;
  bool owns_memory_ = false;
};

}  // namespace stagebeam
