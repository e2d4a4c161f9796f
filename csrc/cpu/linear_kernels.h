// The products' inner loops, once for every instruction set: S is one of the Simd* structs.
//
// A micro kernel keeps R rows x P panels of sums in registers over one block of K. Include this
// after the Simd* header, in a translation unit of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "linear_tables.h"
#include "prefetch.h"

// Sums in arrays live in registers only where every loop over them is unrolled.
#if defined(__clang__)
#define STAGEBEAM_UNROLL _Pragma("unroll")
#else
#define STAGEBEAM_UNROLL _Pragma("GCC unroll 16")
#endif
#define STAGEBEAM_INLINE __attribute__((always_inline))

namespace stagebeam::kernels {

// e^x within 2 units in the last place, for x clamped to -87.33 .. 88.37.
template <typename S>
STAGEBEAM_INLINE inline typename S::Float exp_approx(typename S::Float x) {
  x = S::max(S::min(x, S::set1(88.37f)), S::set1(-87.33f));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the mantissa.
  const auto shifted = S::fma(x, S::set1(1.44269504f), S::set1(12582912.0f));
  const auto n = S::sub(shifted, S::set1(12582912.0f));
  auto r = S::fma(n, S::set1(-0.693145752f), x);
  r = S::fma(n, S::set1(-1.42860677e-6f), r);
  auto p = S::set1(1.0f / 720);
  p = S::fma(p, r, S::set1(1.0f / 120));
  p = S::fma(p, r, S::set1(1.0f / 24));
  p = S::fma(p, r, S::set1(1.0f / 6));
  p = S::fma(p, r, S::set1(0.5f));
  p = S::fma(p, r, S::set1(1.0f));
  p = S::fma(p, r, S::set1(1.0f));
  return S::shift_exponent(p, shifted);
}

template <typename S>
STAGEBEAM_INLINE inline typename S::Float silu(typename S::Float x) {
  const auto one = S::set1(1.0f);
  return S::div(x, S::add(one, exp_approx<S>(S::sub(S::zero(), x))));
}

template <typename S>
inline constexpr int kVectors = kPanelRows / S::kWidth;  // in a panel's width

// What multiplies a group of quantised weights.
template <typename S, WeightFormat kFormat>
struct Scale {
  STAGEBEAM_INLINE inline void load(const std::byte*, int, int) {}
  template <int J>
  STAGEBEAM_INLINE inline typename S::Float weight(typename S::Word word) const {
    if constexpr (kFormat == WeightFormat::kBf16) return S::template bf16_of<J>(word);
    return S::as_float(word);
  }
};
template <typename S>
struct Scale<S, WeightFormat::kInt8> {
  typename S::Float scale;
  STAGEBEAM_INLINE inline void load(const std::byte* scales, int group, int v) {
    const auto* bits = reinterpret_cast<const uint16_t*>(scales);
    scale = S::load_bf16(bits + group * kPanelRows + v * S::kWidth);
  }
  template <int J>
  STAGEBEAM_INLINE inline typename S::Float weight(typename S::Word word) const {
    return S::mul(S::template int8_of<J>(word), scale);
  }
};
template <typename S>
struct Scale<S, WeightFormat::kInt4> {
  typename S::Float step, least;
  STAGEBEAM_INLINE inline void load(const std::byte* scales, int, int v) {
    const auto* bits = reinterpret_cast<const uint16_t*>(scales);
    const auto factor = S::set1(1.0f / kInt4Factor);
    step = S::mul(S::load_fp16(bits + v * S::kWidth), factor);
    least = S::mul(S::load_fp16(bits + kPanelRows + v * S::kWidth), factor);
  }
  template <int J>
  STAGEBEAM_INLINE inline typename S::Float weight(typename S::Word word) const {
    return S::fma(S::template uint4_of<2 * (J % 4) + J / 4>(word), step, least);
  }
};

// How many sums fit beside the weights and the activation: rows x panels x vectors.
template <typename S>
inline constexpr int kSumRegisters = S::kNumRegisters == 32   ? 24
                                     : S::kNumRegisters == 16 ? 12
                                                              : 2;
template <typename S>
inline constexpr int kMaxRows =
    kSumRegisters<S> / kVectors<S> < 12 ? kSumRegisters<S> / kVectors<S> : 12;

// Up to so many rows at a time wait for memory; more are mostly some of many, which meet a tile.
template <typename S>
inline constexpr int kMaxWaitingRows = S::kNumRegisters > 0 ? kMaxRows<S> * 2 / 3 : 0;
// How far ahead panels that are read side by side are asked for, each its own page.
inline constexpr int64_t kPanelBytesAhead = 2048;

// Adds x[R, count] times P panels' weights, panels `stride` bytes apart, `count` <= kSumBlock, to
// sums [R, sum_stride], or sets them where is_first.
template <typename S, WeightFormat kFormat, int R, int P>
struct Micro {
  static constexpr int kWordK = panel_layout(kFormat).word_k;
  static constexpr int kScaleBytes = panel_layout(kFormat).scale_bytes;
  // Groups of shared scales in a block.
  static constexpr int kGroups = kScaleBytes > 0 ? panel_layout(kFormat).block_k / kGroupSize : 1;
  static constexpr int kV = kVectors<S>;
  using Float = typename S::Float;
  using Word = typename S::Word;
  using Scales = Scale<S, kFormat>[P][kV];
  using Words = Word[P][kV];
  using Sums = Float[R][P][kV];

  // Weight J of each word.
  template <int J>
  STAGEBEAM_INLINE static inline void add_weights(const Words& words, const float* x,
                                                  int64_t x_stride, const Scales& scales,
                                                  Sums& sums) {
    Float weights[P][kV];
    STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
      STAGEBEAM_UNROLL for (int v = 0; v < kV; ++v) {
        weights[p][v] = scales[p][v].template weight<J>(words[p][v]);
      }
    }
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
      const Float value = S::set1(x[r * x_stride + J]);
      STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
        STAGEBEAM_UNROLL for (int v = 0; v < kV; ++v) {
          sums[r][p][v] = S::fma(weights[p][v], value, sums[r][p][v]);
        }
      }
    }
  }

  template <int J = 0>
  STAGEBEAM_INLINE static inline void add_words(const Words& words, const float* x,
                                                int64_t x_stride, int count, const Scales& scales,
                                                Sums& sums) {
    if constexpr (J < kWordK) {
      if (J < count) add_weights<J>(words, x, x_stride, scales, sums);
      add_words<J + 1>(words, x, x_stride, count, scales, sums);
    }
  }

  STAGEBEAM_INLINE static inline void add_line(const std::byte* line, int64_t stride,
                                               const float* x, int64_t x_stride, int count,
                                               const Scales& scales, Sums& sums) {
    Words words;
    STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
      STAGEBEAM_UNROLL for (int v = 0; v < kV; ++v) {
        words[p][v] = S::load_words(line + p * stride + v * S::kWidth * 4);
      }
    }
    if constexpr (R <= kMaxWaitingRows<S>) {
      if constexpr (P == 1) {
        constexpr uintptr_t kTurn = kPagesAtOnce * kLineBytes;
        if (reinterpret_cast<uintptr_t>(line) % kTurn == 0) ask_for_next_window<kPagesAtOnce>(line);
      } else {
        STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
          __builtin_prefetch(line + p * stride + kPanelBytesAhead, 0, 2);
        }
      }
    }
    add_words(words, x, x_stride, count, scales, sums);
  }

  static void run(const std::byte* panels, int64_t stride, const float* x, int64_t x_stride,
                  int count, bool is_first, float* out, int64_t out_stride) {
    Sums sums;
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
      STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
        STAGEBEAM_UNROLL for (int v = 0; v < kV; ++v) sums[r][p][v] = S::zero();
      }
    }
    Scales scales;
    const std::byte* line = panels;
    const std::byte* block = panels;
    for (int k = 0, group = 0; k < count; ++group) {
      int end = count;
      if constexpr (kScaleBytes > 0) {
        if (group % kGroups == 0) {
          block = line;
          line += kScaleBytes;
        }
        STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
          STAGEBEAM_UNROLL for (int v = 0; v < kV; ++v) {
            scales[p][v].load(block + p * stride, group % kGroups, v);
          }
        }
        if (end > k + kGroupSize) end = k + kGroupSize;
      }
      for (; k + kWordK <= end; k += kWordK, line += kLineBytes) {
        add_line(line, stride, x + k, x_stride, kWordK, scales, sums);
      }
      if (kWordK > 1 && k < end) {  // the last word of an odd K
        add_line(line, stride, x + k, x_stride, end - k, scales, sums);
        k = end;
      }
    }
    STAGEBEAM_UNROLL for (int r = 0; r < R; ++r) {
      STAGEBEAM_UNROLL for (int p = 0; p < P; ++p) {
        STAGEBEAM_UNROLL for (int v = 0; v < kV; ++v) {
          float* at = out + r * out_stride + p * kPanelRows + v * S::kWidth;
          S::store(at, is_first ? sums[r][p][v] : S::add(S::load(at), sums[r][p][v]));
        }
      }
    }
  }
};

// With few rows several panels run side by side, to have enough sums under way.
template <typename S>
constexpr int panels_at_once(int rows) {
  const int most = kSumRegisters<S> / (rows * kVectors<S>);
  return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

using MicroFunction = void (*)(const std::byte*, int64_t, const float*, int64_t, int, bool, float*,
                               int64_t);

// run of R rows x P panels, or null where no product asks for it.
template <typename S, WeightFormat kFormat, int R, int P>
constexpr MicroFunction micro_function() {
  if constexpr (P <= panels_at_once<S>(R)) return &Micro<S, kFormat, R, P>::run;
  return nullptr;
}

template <typename S, WeightFormat kFormat>
struct MicroTable {
  MicroFunction run[kMaxRows<S> + 1][3];  // [rows][log2 of panels]

  template <int... R>
  static constexpr MicroTable make(std::integer_sequence<int, R...>) {
    return {{{nullptr, nullptr, nullptr},
             {micro_function<S, kFormat, R + 1, 1>(), micro_function<S, kFormat, R + 1, 2>(),
              micro_function<S, kFormat, R + 1, 4>()}...}};
  }
};
template <typename S, WeightFormat kFormat>
inline constexpr MicroTable<S, kFormat> kMicroTable =
    MicroTable<S, kFormat>::make(std::make_integer_sequence<int, kMaxRows<S>>{});

// One block of K for rows x panels, in pieces that the registers hold.
template <typename S, WeightFormat kFormat>
void add_block(const std::byte* panels, int64_t panel_stride, int64_t num_panels, const float* x,
               int64_t x_stride, int64_t num_rows, int count, bool is_first, float* sums,
               int64_t sum_stride) {
  const int64_t pieces = (num_rows + kMaxRows<S> - 1) / kMaxRows<S>;
  int64_t row = 0;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int rows = static_cast<int>((num_rows - row) / (pieces - piece));
    const int widest = panels_at_once<S>(rows);
    for (int64_t p = 0; p < num_panels;) {
      const int64_t left = num_panels - p;
      const int log = widest >= 4 && left >= 4 ? 2 : widest >= 2 && left >= 2 ? 1 : 0;
      kMicroTable<S, kFormat>.run[rows][log](panels + p * panel_stride, panel_stride,
                                             x + row * x_stride, x_stride, count, is_first,
                                             sums + row * sum_stride + p * kPanelRows, sum_stride);
      p += int64_t{1} << log;
    }
    row += rows;
  }
}

// Weights J, J + 1, ... of one line's words as float32 lines.
template <typename S, WeightFormat kFormat, int J = 0>
STAGEBEAM_INLINE inline void unpack_words(typename S::Word word, const Scale<S, kFormat>& scale,
                                          float* out) {
  if constexpr (J < panel_layout(kFormat).word_k) {
    S::store(out + J * kPanelRows, scale.template weight<J>(word));
    unpack_words<S, kFormat, J + 1>(word, scale, out);
  }
}

// `count` weights along K of one panel as float32 lines, as the products see them. The last word
// may write past `count`, within the tile.
template <typename S, WeightFormat kFormat>
void unpack_block(const std::byte* panel, int count, float* out) {
  constexpr PanelLayout kLayout = panel_layout(kFormat);
  for (int v = 0; v < kVectors<S>; ++v) {
    Scale<S, kFormat> scale = {};
    for (int k = 0; k < count; k += kLayout.word_k) {
      const std::byte* block = panel + k / kLayout.block_k * kLayout.block_bytes();
      const int i = k % kLayout.block_k;
      if (i % kGroupSize == 0) scale.load(block, i / kGroupSize, v);
      const std::byte* line = block + kLayout.scale_bytes + i / kLayout.word_k * kLineBytes;
      unpack_words<S, kFormat>(S::load_words(line + v * S::kWidth * 4), scale,
                               out + k * kPanelRows + v * S::kWidth);
    }
  }
}

// Writes one panel's columns of rows row .. row + rows - 1 from sums `stride` apart; `columns` <=
// kPanelRows of them are the matrix's.
template <typename S, Epilogue::Kind kKind>
void finish_as(const LinearTask& task, const float* sums, int64_t stride, int64_t row, int64_t rows,
               int64_t column, int columns) {
  const bool is_whole = columns == kPanelRows;
  const auto factor = S::set1(task.epilogue.scale);
  float buffer[kPanelRows] = {};
  for (int64_t r = row; r < row + rows; ++r, sums += stride) {
    float* out = task.out.data + r * task.out.stride + column;
    const float* residual = nullptr;
    if constexpr (kKind == Epilogue::Kind::kAddResidual) {
      residual = task.epilogue.residual.data + r * task.epilogue.residual.stride + column;
      if (!is_whole) {
        for (int i = 0; i < columns; ++i) buffer[i] = residual[i];
        residual = buffer;
      }
    }
    float* target = is_whole ? out : buffer;
    STAGEBEAM_UNROLL for (int v = 0; v < kVectors<S>; ++v) {
      const int at = v * S::kWidth;
      auto value = S::load(sums + at);
      if constexpr (kKind == Epilogue::Kind::kAddResidual) {
        value = S::fma(factor, value, S::load(residual + at));
      } else if constexpr (kKind == Epilogue::Kind::kSiluMul) {
        value = S::mul(silu<S>(value), S::load(sums + kPanelRows + at));
      }
      S::store(target + at, value);
    }
    if (is_whole) continue;
    for (int i = 0; i < columns; ++i) out[i] = buffer[i];
  }
}

template <typename S>
void finish(const LinearTask& task, const float* sums, int64_t stride, int64_t row, int64_t rows,
            int64_t column) {
  const int64_t left = task.out_columns - column;
  const int columns = static_cast<int>(left < kPanelRows ? left : kPanelRows);
  switch (task.epilogue.kind) {
    case Epilogue::Kind::kNone:
      return finish_as<S, Epilogue::Kind::kNone>(task, sums, stride, row, rows, column, columns);
    case Epilogue::Kind::kAddResidual:
      return finish_as<S, Epilogue::Kind::kAddResidual>(task, sums, stride, row, rows, column,
                                                        columns);
    case Epilogue::Kind::kSiluMul:
      return finish_as<S, Epilogue::Kind::kSiluMul>(task, sums, stride, row, rows, column, columns);
  }
}

// Asks for a panel's columns of `out` before they are written.
STAGEBEAM_INLINE inline void ask_for_out(const LinearTask& task, int64_t row, int64_t rows,
                                         int64_t panel) {
  const int64_t unit = task.epilogue.kind == Epilogue::Kind::kSiluMul ? 2 : 1;
  const float* out = task.out.data + row * task.out.stride + panel / unit * kPanelRows;
  for (int64_t r = 0; r < rows; ++r) ask_to_write(out + r * task.out.stride);
}

// The same for rows row .. row + rows - 1 of `panels` panels from `panel` on, from task.sums.
template <typename S>
void finish_panels(const LinearTask& task, int64_t row, int64_t rows, int64_t panel, int64_t panels,
                   int64_t sum_stride) {
  const int64_t unit = task.epilogue.kind == Epilogue::Kind::kSiluMul ? 2 : 1;
  for (int64_t p = 0; p < panels; p += unit) {
    finish<S>(task, task.sums + p * kPanelRows, sum_stride, row, rows,
              (panel + p) / unit * kPanelRows);
  }
}

// Panels first .. end - 1 for all rows. From kUnpackRows rows on, weights that are not float32 are
// unpacked once for each block of K into a tile that stays in the cache.
template <typename S, WeightFormat kFormat>
void multiply(const LinearTask& task, int64_t first, int64_t end) {
  constexpr PanelLayout kLayout = panel_layout(kFormat);
  const int64_t step = task.num_rows > kMaxRows<S> ? 2 : 4;  // even: gate and up stay together
  const int64_t sum_stride = step * kPanelRows;
  const bool is_unpacked = kFormat != WeightFormat::kFloat32 && task.num_rows > kMaxDirectRows;
  for (int64_t panel = first; panel < end; panel += step) {
    const int64_t panels = end - panel < step ? end - panel : step;
    for (int64_t row = 0; row < task.num_rows; row += kMaxSumRows) {
      const int64_t rows = task.num_rows - row < kMaxSumRows ? task.num_rows - row : kMaxSumRows;
      const float* x = task.x.data + row * task.x.stride;
      for (int64_t k = 0; k == 0 || k < task.in_features; k += kSumBlock) {
        const int64_t left = task.in_features - k;
        const int count = static_cast<int>(left < kSumBlock ? left : kSumBlock);
        const std::byte* source = task.panel(panel) + k / kLayout.block_k * kLayout.block_bytes();
        if (is_unpacked) {
          for (int64_t p = 0; p < panels; ++p) {
            unpack_block<S, kFormat>(source + p * task.panel_bytes, count,
                                     task.tile + p * kSumBlock * kPanelRows);
          }
          add_block<S, WeightFormat::kFloat32>(reinterpret_cast<const std::byte*>(task.tile),
                                               kSumBlock * kLineBytes, panels, x + k, task.x.stride,
                                               rows, count, k == 0, task.sums, sum_stride);
        } else {
          add_block<S, kFormat>(source, task.panel_bytes, panels, x + k, task.x.stride, rows, count,
                                k == 0, task.sums, sum_stride);
        }
      }
      finish_panels<S>(task, row, rows, panel, panels, sum_stride);
    }
  }
}

template <typename S>
void multiply_any(const LinearTask& task, WeightFormat format, int64_t first, int64_t end) {
  switch (format) {
    case WeightFormat::kFloat32:
      return multiply<S, WeightFormat::kFloat32>(task, first, end);
    case WeightFormat::kBf16:
      return multiply<S, WeightFormat::kBf16>(task, first, end);
    case WeightFormat::kInt8:
      return multiply<S, WeightFormat::kInt8>(task, first, end);
    case WeightFormat::kInt4:
      return multiply<S, WeightFormat::kInt4>(task, first, end);
  }
}

}  // namespace stagebeam::kernels
