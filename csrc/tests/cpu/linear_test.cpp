#include "../../cpu/linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../cpu/half.h"
#include "../../cpu/isa.h"
#include "../../cpu/linear_tables.h"
#include "../../cpu/thread_pool.h"
#include "../check.h"

namespace stagebeam {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kFloat32, WeightFormat::kBf16,
                                     WeightFormat::kInt8, WeightFormat::kInt4};

std::vector<float> random_floats(size_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(engine);
  return values;
}

// Every row of x as its own product and with others, over several parts.
std::vector<float> product(const PackedMatrix& weights, const float* x, int64_t rows,
                           int64_t columns, int parts, const Epilogue& epilogue = {}) {
  std::vector<float> out(rows * columns, NAN);
  for (int part = 0; part < parts; ++part) {
    linear_part(weights, {x, weights.in_features()}, rows, {out.data(), columns}, part, parts,
                epilogue);
  }
  return out;
}

bool same_bits(const float* a, const float* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

struct Shape {
  int64_t n, k;
};
constexpr Shape kShapes[] = {{1, 1},    {16, 32},   {17, 33}, {31, 63}, {48, 64}, {70, 95},
                             {33, 257}, {130, 576}, {5, 520}, {80, 1},  {9, 128}, {7, 150}};

// What a product makes of its activations: for integer products q * largest / 127 in each group,
// for bf16's the nearest of its numbers.
std::vector<float> as_seen(const PackedMatrix& weights, const std::vector<float>& x, int64_t rows) {
  if (!weights.rounds_activations()) return x;
  std::vector<float> seen(x);
  if (weights.format() == WeightFormat::kBf16) {
    if (active_isa() < Isa::kAvx512 || !has_avx512_bf16()) return x;
    for (float& value : seen) value = bf16_to_float(float_to_bf16(value));
    return seen;
  }
  const int64_t k = weights.in_features();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t begin = 0; begin < k; begin += kGroupSize) {
      const int64_t end = std::min(k, begin + kGroupSize);
      float most = 0;
      for (int64_t i = begin; i < end; ++i) most = std::max(most, std::fabs(x[r * k + i]));
      for (int64_t i = begin; i < end && most > 0; ++i) {
        float& value = seen[r * k + i];
        const double q = std::nearbyint(double{value} * (127.0f / most));
        value = static_cast<float>(q * (most / 127.0f));
      }
    }
  }
  return seen;
}

void check_shape(Shape shape, WeightFormat format, Activations activations) {
  const auto [n, k] = shape;
  const auto source = random_floats(n * k, 7);
  PackedMatrix weights(n, k, format, RowOrder::kPlain, activations);
  weights.pack_rows(0, n, source.data(), SourceType::kFloat32, k);
  std::vector<float> unpacked(n * k);
  weights.unpack_rows(0, n, unpacked.data(), k);
  constexpr int64_t kMost = 40;
  auto x = random_floats(kMost * k + 1, 11);
  const auto whole = product(weights, x.data(), kMost, n, 1);
  const auto seen = as_seen(weights, x, kMost);
  for (int64_t r = 0; r < kMost; ++r) {
    for (int64_t i = 0; i < n; ++i) {
      double sum = 0, scale = 0;
      for (int64_t j = 0; j < k; ++j) {
        const double term = double{seen[r * k + j]} * unpacked[i * k + j];
        sum += term;
        scale += term * term;
      }
      CHECK(std::fabs(sum - whole[r * n + i]) <= 1e-5 * std::sqrt(scale) + 1e-30);
    }
  }
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 31, 32}) {
    const auto some = product(weights, x.data(), rows, n, static_cast<int>(rows % 5 + 1));
    CHECK(same_bits(some.data(), whole.data(), rows * n));
  }
  for (int64_t r = 1; r < kMost; r += 13) {  // a row alone, from another place
    const auto alone = product(weights, x.data() + r * k, 1, n, 2);
    CHECK(same_bits(alone.data(), whole.data() + r * n, n));
  }
  // From an address of other alignment.
  std::memmove(x.data() + 1, x.data(), kMost * k * sizeof(float));
  const auto shifted = product(weights, x.data() + 1, kMost, n, 3);
  CHECK(same_bits(shifted.data(), whole.data(), kMost * n));
}

TEST(products_equal_a_double_sum_and_do_not_depend_on_rows_or_parts) {
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    for (const WeightFormat format : kFormats) {
      for (const Shape shape : kShapes) {
        check_shape(shape, format, Activations::kRounded);
        check_shape(shape, format, Activations::kFloat32);
      }
    }
  }
}

// More rows than a kernel rounds or holds at once, and a last block of few.
TEST(rows_in_blocks_are_the_rows_alone) {
  constexpr int64_t kN = 40, kK = 100, kRows = 530;
  const auto source = random_floats(kN * kK, 12), x = random_floats(kRows * kK, 13);
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    for (const WeightFormat format : kFormats) {
      PackedMatrix weights(kN, kK, format);
      weights.pack_rows(0, kN, source.data(), SourceType::kFloat32, kK);
      const auto whole = product(weights, x.data(), kRows, kN, 2);
      for (const int64_t row : {0, 15, 127, 128, 255, 300, 511, 512, 529}) {
        const auto alone = product(weights, x.data() + row * kK, 1, kN, 1);
        CHECK(same_bits(alone.data(), whole.data() + row * kN, kN));
      }
      for (const int64_t rows : {128, 129, 140, 515}) {
        const auto some = product(weights, x.data(), rows, kN, 1);
        CHECK(same_bits(some.data(), whole.data(), rows * kN));
      }
    }
  }
}

TEST(simd_sets_give_the_same_bits) {
  const auto source = random_floats(100 * 301, 3);
  auto x = random_floats(20 * 301, 4);
  std::fill_n(x.begin() + 64, 32, 0.0f);                  // a group of zeros
  for (int i = 96; i < 128; ++i) x[i] *= 1e-38f;          // subnormal numbers
  for (int i = 128; i < 160; ++i) x[i] = 0.5f + (i % 8);  // halves, to be rounded to even
  x[128] = 127;
  for (const WeightFormat format : kFormats) {
    // bf16 products round their activations only where an instruction set has them.
    const bool is_bf16 = format == WeightFormat::kBf16;
    PackedMatrix weights(100, 301, format, RowOrder::kPlain,
                         is_bf16 ? Activations::kFloat32 : Activations::kRounded);
    weights.pack_rows(0, 100, source.data(), SourceType::kFloat32, 301);
    std::vector<float> first;
    for (const Isa isa : available_isas()) {
      if (isa == Isa::kScalar) continue;
      set_active_isa(isa);
      const auto out = product(weights, x.data(), 20, 100, 2);
      if (first.empty()) first = out;
      CHECK(same_bits(first.data(), out.data(), out.size()));
      for (const int64_t rows : {1, 4, 5, 6, 7, 8, 9}) {
        const auto some = product(weights, x.data(), rows, 100, 3);
        CHECK(same_bits(first.data(), some.data(), some.size()));
      }
    }
  }
}

// Machines with GFNI would never take the way without it.
TEST(integer_products_without_gfni_give_the_same_bits) {
#if defined(__x86_64__)
  if (!has_gfni()) return;
  set_active_isa(available_isas().back());
  const auto columns = int64_t{70}, in_features = int64_t{150};
  const auto values = random_floats(columns * in_features, 5);
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    PackedMatrix weights(columns, in_features, format);
    weights.pack_rows(0, columns, values.data(), SourceType::kFloat32, in_features);
    const PackedMatrix::Run& run = weights.runs().front();
    for (const int64_t rows : {1, 5, 8, 11}) {
      const auto x = random_floats(rows * in_features, 6);
      struct alignas(64) Memory {
        float sums[kernels::kMaxSums];
        std::byte integers[1 << 16];
      };
      const auto memory = std::make_unique<Memory>();
      CHECK(kernels::rounded_bytes(format, rows, in_features) <= int64_t{sizeof memory->integers});
      auto multiply = [&](kernels::MultiplyFunction function) {
        std::vector<float> out(rows * columns, NAN);
        const kernels::LinearTask task{run.data,
                                       run.first,
                                       static_cast<int64_t>(weights.panel_bytes()),
                                       in_features,
                                       columns,
                                       {x.data(), in_features},
                                       rows,
                                       {out.data(), columns},
                                       {},
                                       memory->sums,
                                       nullptr,
                                       memory->integers};
        function(task, format, run.first, run.end);
        return out;
      };
      const auto with = multiply(kernels::multiply_rounded_gfni);
      const auto without = multiply(kernels::multiply_rounded_vnni);
      CHECK(same_bits(with.data(), without.data(), with.size()));
      CHECK(
          same_bits(with.data(), product(weights, x.data(), rows, columns, 1).data(), with.size()));
    }
  }
#endif
}

TEST(integer_products_carry_nan_and_infinity_to_their_row_alone) {
  const auto source = random_floats(40 * 96, 3);
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
      PackedMatrix weights(40, 96, format);
      weights.pack_rows(0, 40, source.data(), SourceType::kFloat32, 96);
      for (const int64_t rows : {3, 8, 11}) {
        auto x = random_floats(rows * 96, 4);
        const auto finite = product(weights, x.data(), rows, 40, 1);
        x[5] = NAN;
        x[96 + 40] = INFINITY;
        const auto out = product(weights, x.data(), rows, 40, 1);
        CHECK(std::all_of(out.begin(), out.begin() + 80, [](float v) { return std::isnan(v); }));
        CHECK(same_bits(out.data() + 80, finite.data() + 80, (rows - 2) * 40));
      }
    }
  }
}

TEST(two_products_in_one_region_with_a_barrier_between) {
  constexpr int64_t kN = 150, kK = 90, kRows = 9;
  const auto source = random_floats(kN * kK, 1), back = random_floats(kK * kN, 2);
  const auto x = random_floats(kRows * kK, 3);
  PackedMatrix up(kN, kK, WeightFormat::kBf16), down(kK, kN, WeightFormat::kInt8);
  up.pack_rows(0, kN, source.data(), SourceType::kFloat32, kK);
  down.pack_rows(0, kK, back.data(), SourceType::kFloat32, kN);
  const auto expected = product(down, product(up, x.data(), kRows, kN, 1).data(), kRows, kK, 1);
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    std::vector<float> middle(kRows * kN), out(kRows * kK);
    pool.run([&](int part, int parts) {
      linear_part(up, {x.data(), kK}, kRows, {middle.data(), kN}, part, parts);
      pool.barrier();
      linear_part(down, {middle.data(), kN}, kRows, {out.data(), kK}, part, parts);
    });
    CHECK(out == expected);
  }
}

TEST(zero_rows_and_empty_sums) {
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    PackedMatrix weights(20, 0, WeightFormat::kBf16);
    const auto out = product(weights, nullptr, 3, 20, 2);
    CHECK(std::all_of(out.begin(), out.end(), [](float value) { return value == 0; }));
    linear_part(weights, {nullptr, 0}, 0, {nullptr, 0}, 0, 1);
    linear_part(PackedMatrix(0, 8, WeightFormat::kInt8), {nullptr, 0}, 0, {nullptr, 0}, 0, 1);
  }
}

TEST(epilogues_equal_the_product_and_then_the_op) {
  constexpr int64_t kK = 70, kRows = 19;
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    for (const int64_t n : {1, 16, 37, 90}) {
      const auto source = random_floats(2 * n * kK, 5);
      const auto x = random_floats(kRows * kK, 6);
      for (const WeightFormat format : kFormats) {
        PackedMatrix plain(2 * n, kK, format), paired(2 * n, kK, format, RowOrder::kGateUp);
        plain.pack_rows(0, 2 * n, source.data(), SourceType::kFloat32, kK);
        paired.pack_rows(0, 2 * n, source.data(), SourceType::kFloat32, kK);
        const auto whole = product(plain, x.data(), kRows, 2 * n, 1);
        auto sum = random_floats(kRows * 2 * n, 8);
        const auto residual = sum;
        for (int part = 0; part < 3; ++part) {  // in place
          linear_part(plain, {x.data(), kK}, kRows, {sum.data(), 2 * n}, part, 3,
                      Epilogue::add_residual({sum.data(), 2 * n}, 0.5f));
        }
        for (const int64_t rows : {int64_t{1}, int64_t{5}, int64_t{8}, kRows}) {
          const auto gated = product(paired, x.data(), rows, n, 3, Epilogue::silu_mul());
          for (int64_t i = 0; i < rows * n; ++i) {
            const double gate = whole[i / n * 2 * n + i % n];
            const double up = whole[i / n * 2 * n + n + i % n];
            const double exact = gate / (1 + std::exp(-gate)) * up;
            CHECK(std::fabs(exact - gated[i]) <= 1e-6 * std::fabs(exact) + 1e-30);
          }
        }
        for (size_t i = 0; i < sum.size(); ++i) {
          const float exact = residual[i] + 0.5f * whole[i];
          CHECK(std::fabs(exact - sum[i]) <= 1e-6f * (std::fabs(exact) + 1));
        }
      }
    }
  }
}

TEST(packing_rounds_as_promised) {
  constexpr int64_t kN = 21, kK = 77;
  const auto source = random_floats(kN * kK, 9);
  for (const WeightFormat format : kFormats) {
    PackedMatrix weights(kN, kK, format);
    for (int64_t row = 0; row < kN; row += 4) {  // in ranges, as a loader does
      const int64_t count = std::min<int64_t>(4, kN - row);
      weights.pack_rows(row, count, source.data() + row * kK, SourceType::kFloat32, kK);
    }
    std::vector<float> unpacked(kN * kK);
    weights.unpack_rows(0, kN, unpacked.data(), kK);
    for (int64_t row = 0; row < kN; ++row) {
      for (int64_t k = 0; k < kK; k += kGroupSize) {
        const int64_t end = std::min(kK, k + kGroupSize);
        float most = 0, low = INFINITY, high = -INFINITY;
        for (int64_t i = k; i < end; ++i) {
          const float weight = source[row * kK + i];
          most = std::max(most, std::fabs(weight));
          low = std::min(low, weight);
          high = std::max(high, weight);
        }
        for (int64_t i = k; i < end; ++i) {
          const float weight = source[row * kK + i];
          const float error = std::fabs(weight - unpacked[row * kK + i]);
          float most_allowed = 0;
          if (format == WeightFormat::kBf16) {
            CHECK(unpacked[row * kK + i] == bf16_to_float(float_to_bf16(weight)));
            continue;
          }
          if (format == WeightFormat::kInt8) most_allowed = most / 127 / 2 * 1.01f;
          if (format == WeightFormat::kInt4) most_allowed = (high - low) / 15 / 2 * 1.03f;
          CHECK(error <= most_allowed);
        }
      }
    }
  }
}

TEST(packing_from_narrow_types_and_again) {
  const std::vector<float> exact{0, 1, -2.5f, 0.375f, -65504, 6.103515625e-5f, 5.9604645e-8f};
  std::vector<uint16_t> bf16, fp16;
  for (const float x : exact) {
    bf16.push_back(float_to_bf16(x));
    fp16.push_back(float_to_fp16(x));
  }
  const int64_t k = static_cast<int64_t>(exact.size());
  PackedMatrix weights(2, k, WeightFormat::kFloat32);
  weights.pack_rows(0, 1, bf16.data(), SourceType::kBf16, k);
  weights.pack_rows(1, 1, fp16.data(), SourceType::kFp16, k);
  std::vector<float> out(2 * k);
  weights.unpack_rows(0, 2, out.data(), k);
  for (int64_t i = 0; i < k; ++i) {
    CHECK(out[i] == bf16_to_float(bf16[i]));
    CHECK(out[k + i] == exact[i]);
  }
  // What is already on the 4-bit grid, as a GGUF's Q4_1 blocks are, comes back exactly.
  std::vector<float> grid(kGroupSize);
  for (int i = 0; i < kGroupSize; ++i) grid[i] = 0.01171875f * (i % 16) - 0.0859375f;
  PackedMatrix four(1, kGroupSize, WeightFormat::kInt4);
  four.pack_rows(0, 1, grid.data(), SourceType::kFloat32, kGroupSize);
  std::vector<float> back(kGroupSize);
  four.unpack_rows(0, 1, back.data(), kGroupSize);
  CHECK(back == grid);
}

TEST(shares_of_matrices_are_streams_and_change_no_bit) {
  constexpr int64_t kK = 65, kRows = 8;
  for (const Isa isa : available_isas()) {
    set_active_isa(isa);
    for (const WeightFormat format : kFormats) {
      for (const int shares : {1, 2, 3, 7}) {
        WeightStreams streams(shares);
        int64_t first_end = 0;
        for (const int64_t n : {40, 100, 4}) {
          const auto source = random_floats(n * kK, 23), x = random_floats(kRows * kK, 29);
          PackedMatrix plain(n, kK, format, RowOrder::kGateUp);
          PackedMatrix shared(n, kK, format, RowOrder::kGateUp, Activations::kRounded, &streams);
          plain.pack_rows(0, n, source.data(), SourceType::kFloat32, kK);
          shared.pack_rows(0, n, source.data(), SourceType::kFloat32, kK);
          std::vector<float> unpacked(n * kK), expected(n * kK);
          plain.unpack_rows(0, n, expected.data(), kK);
          shared.unpack_rows(0, n, unpacked.data(), kK);
          CHECK(unpacked == expected);
          const auto want = product(plain, x.data(), kRows, n / 2, 1, Epilogue::silu_mul());
          for (const int parts : {1, 2, 3, 7}) {  // as many as shares, and others
            const auto got = product(shared, x.data(), kRows, n / 2, parts, Epilogue::silu_mul());
            CHECK(same_bits(got.data(), want.data(), want.size()));
          }
          // The first share lies behind that of the matrix before.
          const auto begin = reinterpret_cast<intptr_t>(shared.share(0, shares));
          CHECK(first_end == 0 || begin == first_end || shared.first_panel(1, shares) == 0);
          if (shared.first_panel(1, shares) > 0) {
            first_end = begin + shared.first_panel(1, shares) * shared.panel_bytes();
          }
        }
      }
    }
  }
}

TEST(wrong_arguments_are_refused) {
  CHECK_THROWS(PackedMatrix(-1, 4, WeightFormat::kBf16));
  CHECK_THROWS(PackedMatrix(3, 4, WeightFormat::kBf16, RowOrder::kGateUp));
  PackedMatrix weights(4, 4, WeightFormat::kInt4);
  const float row[4] = {1, 2, 3, 1000};
  const float nan_row[4] = {1, 2, 3, NAN};
  CHECK_THROWS(weights.pack_rows(0, 1, row, SourceType::kFloat32, 4));
  CHECK_THROWS(weights.pack_rows(0, 1, nan_row, SourceType::kFloat32, 4));
  CHECK_THROWS(weights.pack_rows(4, 1, row, SourceType::kFloat32, 4));
  CHECK_THROWS(parse_weight_format("int3"));
  CHECK_THROWS(parse_isa("sse"));
}

}  // namespace
}  // namespace stagebeam
