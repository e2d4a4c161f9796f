#include "packed_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "aligned_memory.h"
#include "half.h"

namespace stagebeam {
namespace {

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

void to_floats(const void* source, SourceType type, int64_t first, int64_t count, float* out) {
  const char* bytes = static_cast<const char*>(source);
  if (type == SourceType::kFloat32) {
    std::memcpy(out, bytes + first * 4, count * 4);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t bits;
    std::memcpy(&bits, bytes + (first + i) * 2, 2);
    out[i] = type == SourceType::kBf16 ? bf16_to_float(bits) : fp16_to_float(bits);
  }
}

void check_weights(const std::vector<float>& row, WeightFormat format, int64_t index) {
  const float limit = format == WeightFormat::kInt4   ? kInt4Factor - 1
                      : format == WeightFormat::kInt8 ? 1e37f
                                                      : INFINITY;
  if (limit == INFINITY) return;  // these formats carry any number
  for (const float weight : row) {
    if (std::fabs(weight) < limit) continue;
    throw std::invalid_argument(std::string(weight_format_name(format)) +
                                " holds weights within +-" + std::to_string(limit) + ", got " +
                                std::to_string(weight) + " in row " + std::to_string(index));
  }
}

// The least bf16 that is not below x >= 0, so that no quotient exceeds its range.
uint16_t bf16_at_least(float x) {
  const uint32_t bits = float_to_bits(x);
  return uint16_t((bits >> 16) + ((bits & 0xffffu) != 0 ? 1 : 0));
}

template <typename T>
void put(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

template <typename T>
T get(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// `weights` holds kGroupSize numbers, zeros after the row's end.
void pack_int8_group(const float* weights, std::byte* scales, std::byte* lines, int lane) {
  float most = 0;
  for (int i = 0; i < kGroupSize; ++i) most = std::max(most, std::fabs(weights[i]));
  const uint16_t scale_bits = bf16_at_least(most / 127.0f);
  const float scale = bf16_to_float(scale_bits);
  put(scales + 2 * lane, scale_bits);
  for (int i = 0; i < kGroupSize; ++i) {
    const float q = scale > 0 ? std::nearbyint(weights[i] / scale) : 0;
    put(lines + i / 4 * kLineBytes + lane * 4 + i % 4, static_cast<int8_t>(q));
  }
}

// Weight i of eight stands in byte i % 4 of the word, in its low half for i < 4.
constexpr int nibble_of(int i) {
  return 2 * (i % 4) + i / 4;
}

void pack_int4_group(const float* weights, int count, std::byte* scales, std::byte* lines,
                     int lane) {
  const auto [low, high] = std::minmax_element(weights, weights + count);
  const uint16_t least_bits = float_to_fp16(*low * kInt4Factor);
  const float least = fp16_to_float(least_bits) / kInt4Factor;
  const uint16_t step_bits = float_to_fp16((*high - least) / 15.0f * kInt4Factor);
  const float step = fp16_to_float(step_bits) / kInt4Factor;
  put(scales + 2 * lane, step_bits);
  put(scales + 2 * (kPanelRows + lane), least_bits);
  for (int word = 0; word < kGroupSize / 8; ++word) {
    uint32_t bits = 0;
    for (int i = 0; i < 8; ++i) {
      const int at = word * 8 + i;
      const float q = step > 0 && at < count ? std::nearbyint((weights[at] - least) / step) : 0;
      bits |= static_cast<uint32_t>(std::clamp(q, 0.0f, 15.0f)) << (4 * nibble_of(i));
    }
    put(lines + word * kLineBytes + lane * 4, bits);
  }
}

}  // namespace

const char* weight_format_name(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return "bf16";
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kInt4:
      return "int4";
    case WeightFormat::kFloat32:
      break;
  }
  return "float32";
}

WeightFormat parse_weight_format(const char* name) {
  for (const WeightFormat format :
       {WeightFormat::kFloat32, WeightFormat::kBf16, WeightFormat::kInt8, WeightFormat::kInt4}) {
    if (std::strcmp(name, weight_format_name(format)) == 0) return format;
  }
  throw std::invalid_argument("weight format must be float32, bf16, int8 or int4, got \"" +
                              std::string(name) + "\"");
}

PackedMatrix::PackedMatrix(int64_t out_features, int64_t in_features, WeightFormat format,
                           RowOrder order, Activations activations, WeightStreams* streams)
    : out_features_(out_features),
      in_features_(in_features),
      format_(format),
      order_(order),
      activations_(activations) {
  if (out_features < 0 || in_features < 0) {
    throw std::invalid_argument("a packed matrix needs sizes of at least 0, got [" +
                                std::to_string(out_features) + ", " + std::to_string(in_features) +
                                "]");
  }
  if (order == RowOrder::kGateUp && out_features % 2 != 0) {
    throw std::invalid_argument("gate and up rows must be as many as each other, got " +
                                std::to_string(out_features) + " in all");
  }
  const PanelLayout layout = panel_layout(format);
  num_panels_ = order == RowOrder::kGateUp ? 2 * ceil_div(out_features / 2, kPanelRows)
                                           : ceil_div(out_features, kPanelRows);
  panel_bytes_ = ceil_div(in_features, layout.block_k) * layout.block_bytes();
  if (streams == nullptr) {
    runs_.push_back({0, num_panels_, nullptr});
    runs_.front().data = static_cast<std::byte*>(allocate_zeroed(num_bytes()));
    owns_memory_ = true;
    return;
  }
  const int shares = streams->num_streams();
  for (int share = 0; share < shares; ++share) {
    const int64_t first = first_panel(share, shares), end = first_panel(share + 1, shares);
    runs_.push_back({first, end, streams->allocate(share, (end - first) * panel_bytes_)});
  }
}

PackedMatrix::~PackedMatrix() {
  if (owns_memory_) release(runs_.front().data, num_bytes());
}

void PackedMatrix::swap(PackedMatrix& other) noexcept {
  std::swap(out_features_, other.out_features_);
  std::swap(in_features_, other.in_features_);
  std::swap(format_, other.format_);
  std::swap(order_, other.order_);
  std::swap(activations_, other.activations_);
  std::swap(num_panels_, other.num_panels_);
  std::swap(panel_bytes_, other.panel_bytes_);
  std::swap(runs_, other.runs_);
  std::swap(owns_memory_, other.owns_memory_);
}

PackedMatrix::Place PackedMatrix::place(int64_t row) const {
  int64_t panel = row / kPanelRows;
  if (order_ == RowOrder::kGateUp) {
    const int64_t half = out_features_ / 2;
    const bool is_up = row >= half;
    if (is_up) row -= half;
    panel = row / kPanelRows * 2 + is_up;
  }
  return {panel_at(panel), static_cast<int>(row % kPanelRows)};
}

std::byte* PackedMatrix::panel_at(int64_t panel) const {
  auto run = runs_.begin();
  while (run + 1 != runs_.end() && panel >= run->end) ++run;
  return run->data + (panel - run->first) * panel_bytes_;
}

const std::byte* PackedMatrix::share(int64_t share, int64_t shares) const {
  return has_run_for_each(shares) ? runs_[share].data : panel_at(first_panel(share, shares));
}

void PackedMatrix::ask_for_row(int64_t row) const {
  const std::byte* panel = place(row).panel;
  for (size_t i = 0; i < panel_bytes_; i += kLineBytes) __builtin_prefetch(panel + i);
}

void PackedMatrix::check_rows(int64_t first_row, int64_t num_rows) const {
  if (first_row >= 0 && num_rows >= 0 && num_rows <= out_features_ - first_row) return;
  throw std::invalid_argument(
      "rows " + std::to_string(first_row) + " .. " + std::to_string(first_row + num_rows - 1) +
      " are not all in a matrix of " + std::to_string(out_features_) + " rows");
}

void PackedMatrix::pack_rows(int64_t first_row, int64_t num_rows, const void* source,
                             SourceType type, int64_t stride) {
  check_rows(first_row, num_rows);
  const PanelLayout layout = panel_layout(format_);
  const int64_t padded = ceil_div(in_features_, layout.block_k) * layout.block_k;
  std::vector<float> row(padded, 0.0f);
  for (int64_t r = 0; r < num_rows; ++r) {
    to_floats(source, type, r * stride, in_features_, row.data());
    const Place at = place(first_row + r);
    check_weights(row, format_, first_row + r);
    for (int64_t k = 0; k < padded; k += layout.block_k) {
      std::byte* block = at.panel + k / layout.block_k * layout.block_bytes();
      std::byte* lines = block + layout.scale_bytes;
      switch (format_) {
        case WeightFormat::kFloat32:
          put(block + at.lane * 4, row[k]);
          break;
        case WeightFormat::kBf16:
          put(block + at.lane * 4, float_to_bf16(row[k]));
          put(block + at.lane * 4 + 2, float_to_bf16(row[k + 1]));
          break;
        case WeightFormat::kInt8:
          pack_int8_group(&row[k], block, lines, at.lane);
          pack_int8_group(&row[k + kGroupSize], block + 2 * kPanelRows,
                          lines + kGroupSize / 4 * kLineBytes, at.lane);
          break;
        case WeightFormat::kInt4:
          pack_int4_group(&row[k],
                          static_cast<int>(std::min<int64_t>(kGroupSize, in_features_ - k)), block,
                          lines, at.lane);
          break;
      }
    }
  }
}

void PackedMatrix::unpack_rows(int64_t first_row, int64_t num_rows, float* out,
                               int64_t stride) const {
  check_rows(first_row, num_rows);
  const PanelLayout layout = panel_layout(format_);
  for (int64_t r = 0; r < num_rows; ++r) {
    const Place at = place(first_row + r);
    float* row = out + r * stride;
    for (int64_t k = 0; k < in_features_; k += layout.word_k) {  // a word at a time
      const std::byte* block = at.panel + k / layout.block_k * layout.block_bytes();
      const int64_t i = k % layout.block_k, left = in_features_ - k;
      const std::byte* word =
          block + layout.scale_bytes + i / layout.word_k * kLineBytes + at.lane * 4;
      switch (format_) {
        case WeightFormat::kFloat32:
          row[k] = get<float>(word);
          break;
        case WeightFormat::kBf16:
          for (int64_t j = 0; j < std::min<int64_t>(left, 2); ++j) {
            row[k + j] = bf16_to_float(get<uint16_t>(word + 2 * j));
          }
          break;
        case WeightFormat::kInt8: {
          const float scale =
              bf16_to_float(get<uint16_t>(block + 2 * (i / kGroupSize * kPanelRows + at.lane)));
          for (int64_t j = 0; j < std::min<int64_t>(left, 4); ++j) {
            row[k + j] = get<int8_t>(word + j) * scale;
          }
          break;
        }
        case WeightFormat::kInt4: {
          const float step = fp16_to_float(get<uint16_t>(block + 2 * at.lane));
          const float least = fp16_to_float(get<uint16_t>(block + 2 * (kPanelRows + at.lane)));
          for (int j = 0; j < std::min<int64_t>(left, 8); ++j) {
            const uint32_t q = get<uint32_t>(word) >> (4 * nibble_of(j)) & 15;
            row[k + j] = std::fma(static_cast<float>(q), step / kInt4Factor, least / kInt4Factor);
          }
          break;
        }
      }
    }
  }
}

}  // namespace stagebeam
