#include "linear.h"

#include <algorithm>
#include <cassert>
#include <memory>
#include <vector>

#include "isa.h"
#include "linear_tables.h"

namespace stagebeam {
namespace {

struct alignas(64) Scratch {
  float sums[kernels::kMaxSums];
  float tile[kernels::kTileSize];
};

// Grows to what the largest product of rounded rows needs.
std::byte* rounded_scratch(int64_t num_bytes) {
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  thread_local std::vector<Line> memory;
  const size_t lines = (num_bytes + 63) / 64;
  if (memory.size() < lines) memory.resize(lines);
  return memory.front().bytes;
}

Scratch& scratch() {
  thread_local const std::unique_ptr<Scratch> memory(new Scratch);
  return *memory;
}

// The kernel of weights that meet rounded activations; null where this machine has none.
kernels::MultiplyFunction rounded_function(WeightFormat format) {
  if (format == WeightFormat::kBf16) {
#if defined(__x86_64__)
    static const bool has_bf16 = has_avx512_bf16();
    if (active_isa() == Isa::kAmx) return kernels::multiply_rounded_amx_bf16;
    if (has_bf16 && active_isa() >= Isa::kAvx512) return kernels::multiply_rounded_bf16;
#endif
    return nullptr;
  }
  switch (active_isa()) {
#if defined(__aarch64__)
    case Isa::kNeon:
      return kernels::multiply_rounded_neon;
#elif defined(__x86_64__)
    case Isa::kAmx:
      return kernels::multiply_rounded_amx_integers;
    case Isa::kAvx512:
      return has_avx512_vnni() ? kernels::multiply_rounded_avx512 : kernels::multiply_rounded_avx2;
    case Isa::kAvx2:
      return kernels::multiply_rounded_avx2;
#endif
    default:
      return kernels::multiply_rounded_scalar;
  }
}

kernels::MultiplyFunction multiply_function() {
  switch (active_isa()) {
#if defined(__aarch64__)
    case Isa::kNeon:
      return kernels::multiply_neon;
#elif defined(__x86_64__)
    case Isa::kAmx:
    case Isa::kAvx512:
      return kernels::multiply_avx512;
    case Isa::kAvx2:
      return kernels::multiply_avx2;
#endif
    default:
      return kernels::multiply_scalar;
  }
}

}  // namespace

void linear_part(const PackedMatrix& weights, ConstRows x, int64_t num_rows, Rows out, int part,
                 int parts, const Epilogue& epilogue) noexcept {
  const bool is_gate_up = weights.order() == RowOrder::kGateUp;
  assert(is_gate_up == (epilogue.kind == Epilogue::Kind::kSiluMul));
  assert(part >= 0 && part < parts);
  if (num_rows <= 0) return;
  const int64_t first = weights.first_panel(part, parts);
  const int64_t end = weights.first_panel(part + 1, parts);
  if (first == end) return;
  Scratch& memory = scratch();
  const int64_t in_features = weights.in_features();
  const WeightFormat format = weights.format();
  const auto rounded =
      weights.rounds_activations() && in_features > 0 ? rounded_function(format) : nullptr;
  const auto multiply = rounded != nullptr ? rounded : multiply_function();
  for (const PackedMatrix::Run& run : weights.runs()) {
    const int64_t run_first = std::max(first, run.first), run_end = std::min(end, run.end);
    if (run_first >= run_end) continue;
    const kernels::LinearTask task{run.data,
                                   run.first,
                                   static_cast<int64_t>(weights.panel_bytes()),
                                   in_features,
                                   weights.out_features() / (is_gate_up ? 2 : 1),
                                   x,
                                   num_rows,
                                   out,
                                   epilogue,
                                   memory.sums,
                                   memory.tile,
                                   rounded == nullptr ? nullptr
                                                      : rounded_scratch(kernels::rounded_bytes(
                                                            format, num_rows, in_features))};
    multiply(task, format, run_first, run_end);
  }
}

}  // namespace stagebeam
