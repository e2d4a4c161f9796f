// Bodies of the norms, SiLU, rotary embedding, cache writes and log-sum-exp; included like simd8.h.

// Sums of f(x) in four times eight lanes, whatever comes after `cols` counting as zero; f takes
// vectors of any width.
template <typename Function>
STAGEBEAM_INLINE float sum_of(const float* x, int64_t cols, Function&& f) {
  constexpr int kWides = 4 * sizeof(Lanes) / sizeof(WideLanes);
  WideLanes wides[kWides] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= cols; i += 4 * kLanes) {
    for (int v = 0; v < kWides; ++v) wides[v] += f(load_wide(x + i + v * 4 / kWides * kLanes));
  }
  Lanes sums[4];
  std::memcpy(sums, wides, sizeof sums);
  for (; i + kLanes <= cols; i += kLanes) sums[0] += f(load(x + i));
  float total = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < cols; ++i) total += f(splat(x[i]))[0];
  return total;
}

void rms_norm(const float* x, const float* weight, float eps, int64_t cols, float* out) {
  const float square = sum_of(x, cols, [](auto v) { return v * v; });
  const float scale = 1.0f / std::sqrt(square / static_cast<float>(cols) + eps);
  for (int64_t i = 0; i < cols; ++i) out[i] = weight[i] * (x[i] * scale);
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t cols,
                float* out) {
  const auto count = static_cast<float>(cols);
  const float mean = sum_of(x, cols, [](auto v) { return v; }) / count;
  const float square = sum_of(x, cols, [mean](auto v) { return (v - mean) * (v - mean); });
  const float scale = 1.0f / std::sqrt(square / count + eps);
  for (int64_t i = 0; i < cols; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

void add(const float* x, const float* y, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; ++i) out[i] = x[i] + y[i];
}

float dot(const float* x, const float* y, int64_t cols) {
  Lanes sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= cols; i += 2 * kLanes) {
    sums[0] += load(x + i) * load(y + i);
    sums[1] += load(x + i + kLanes) * load(y + i + kLanes);
  }
  float total = sum_lanes(sums[0] + sums[1]);
  for (; i < cols; ++i) total += x[i] * y[i];
  return total;
}

STAGEBEAM_INLINE Lanes silu(Lanes x) {
  // Below -88 e^-x leaves float's range and the quotient is as good as 0.
  return select(x < -88.0f, splat(0), x / (exponential(-x) + 1.0f));
}

void silu_mul(const float* gate, const float* up, int64_t cols, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= cols; i += kLanes) store(out + i, silu(load(gate + i)) * load(up + i));
  if (i < cols) {
    const Lanes g = load_partial(gate + i, cols - i), u = load_partial(up + i, cols - i);
    store_partial(out + i, silu(g) * u, cols - i);
  }
}

void rotate(float* head, const float* cos_sin, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  const float *cosines = cos_sin, *sines = cos_sin + half;
  for (int64_t d = 0; d < half; ++d) {
    const float a = head[d], b = head[d + half];
    head[d] = a * cosines[d] - b * sines[d];
    head[d + half] = b * cosines[d] + a * sines[d];
  }
}

void scale_padded(const float* x, float scale, int64_t cols, float* out) {
  for (int64_t d = 0; d < cols; ++d) out[d] = x[d] * scale;
  for (int64_t d = cols; d < padded(cols); ++d) out[d] = 0;
}

void store_head(const float* x, int64_t cols, CacheFormat format, void* out, float* scale) {
  if (format == CacheFormat::kFloat32) {
    std::memcpy(out, x, static_cast<size_t>(cols) * sizeof(float));
  } else if (format == CacheFormat::kBfloat16) {
    auto* halves = static_cast<Bfloat16*>(out);
    for (int64_t d = 0; d < cols; ++d) halves[d] = to_bfloat16(x[d]);
  } else if (format == CacheFormat::kInt8) {
    float largest = 0;
    for (int64_t d = 0; d < cols; ++d) largest = std::max(largest, std::fabs(x[d]));
    *scale = largest / 127.0f;
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    auto* bytes = static_cast<int8_t*>(out);
    for (int64_t d = 0; d < cols; ++d) {
      bytes[d] = static_cast<int8_t>(std::nearbyint(x[d] * inverse));
    }
  }
}

// Sums of f(x) in floats as far as they go, then in doubles.
template <typename Function>
STAGEBEAM_INLINE double long_sum_of(const float* x, int64_t count, Function&& f) {
  constexpr int64_t kPart = 4096;
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kPart) {
    total += sum_of(x + begin, std::min(kPart, count - begin), f);
  }
  return total;
}

double exp_sum(const float* x, int64_t count, float largest, float temperature) {
  if (temperature == 1) {  // a division takes as long as the rest
    return long_sum_of(x, count, [&](auto v) { return exponential(v - largest); });
  }
  return long_sum_of(x, count, [&](auto v) { return exponential((v - largest) / temperature); });
}

// The largest of x; several at once, since each comparison waits for the one before.
float largest(const float* x, int64_t count) {
  float top = x[0];
  int64_t i = 0;
  if (count >= 4 * kLanes) {
    Lanes tops[4];
    for (int v = 0; v < 4; ++v) tops[v] = load(x + v * kLanes);
    for (i = 4 * kLanes; i + 4 * kLanes <= count; i += 4 * kLanes) {
      for (int v = 0; v < 4; ++v) tops[v] = larger(load(x + i + v * kLanes), tops[v]);
    }
    top = max_lanes(larger(larger(tops[0], tops[1]), larger(tops[2], tops[3])));
  }
  for (; i < count; ++i) top = std::max(top, x[i]);
  return top;
}

void log_sum_exp(const float* x, int64_t count, const float* ahead, float* top, int64_t* place,
                 double* sum) {
  constexpr int64_t kBlock = 8 * kLanes;
  *top = largest(x, count);
  const Lanes tops = splat(*top);
  int64_t at = 0;
  auto has_top = [&](const float* p) {
    Ints same = load(p) == tops;
    for (int64_t v = 1; v < kBlock / kLanes; ++v) same |= load(p + v * kLanes) == tops;
    int32_t any = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) any |= same[lane];
    return any != 0;
  };
  while (at + kBlock <= count && !has_top(x + at)) at += kBlock;
  while (at < count - 1 && !(x[at] == *top)) ++at;
  *place = at;
  auto next = reinterpret_cast<uintptr_t>(ahead);
  const float largest = *top;
  *sum = long_sum_of(x, count, [&](auto v) {
    __builtin_prefetch(reinterpret_cast<const void*>(next));
    next += sizeof v;
    return exponential(v - largest);
  });
}
