// Bodies of `attend` and `fold_states`; included like simd8.h.

// Rows of the cache that hold tokens t .. t + 7 of one head; past `end` the last one repeats, so
// that every score is made by the same instructions.
template <typename Element>
STAGEBEAM_INLINE void token_rows(const KvLayout& layout, const void* data, const int32_t* table,
                                 int64_t t, int64_t end, const Element* rows[8]) {
  const auto* base = static_cast<const Element*>(data);
  if (table == nullptr) {
    for (int64_t i = 0; i < 8; ++i) {
      rows[i] = base + (t + i < end ? t + i : end - 1) * layout.token_stride;
    }
    return;
  }
  // One division for eight tokens: it takes as long as many products.
  int64_t block = t / layout.block_size, offset = t - block * layout.block_size;
  for (int64_t i = 0; i < 8; ++i) {
    rows[i] = base + int64_t{table[block]} * layout.block_stride + offset * layout.token_stride;
    if (t + i + 1 < end && ++offset == layout.block_size) {
      ++block;
      offset = 0;
    }
  }
}

inline float token_scale(const KvLayout& layout, const float* scales, const int32_t* table,
                         int64_t token) {
  if (table == nullptr) return scales[token * layout.scale_token_stride];
  return scales[int64_t{table[token / layout.block_size]} * layout.scale_block_stride +
                token % layout.block_size * layout.scale_token_stride];
}

template <typename Element, int Q>
STAGEBEAM_INLINE void score_eight(const Element* const rows[8], const Query* queries,
                                  int64_t head_dim, Lanes out[Q]) {
  Lanes sums[Q][8];
  const int64_t whole = head_dim / kLanes * kLanes;
  for (int i = 0; i < 8; ++i) {
    Lanes acc[Q] = {};
    for (int64_t d = 0; d < whole; d += kLanes) {
      const Lanes key = load(rows[i] + d);
      for (int q = 0; q < Q; ++q) acc[q] += key * load(queries[q].query + d);
    }
    if (whole < head_dim) {
      const Lanes key = load_partial(rows[i] + whole, head_dim - whole);
      for (int q = 0; q < Q; ++q) acc[q] += key * load(queries[q].query + whole);
    }
    for (int q = 0; q < Q; ++q) sums[q][i] = acc[q];
  }
  for (int q = 0; q < Q; ++q) out[q] = sum_each(sums[q]);
}

// Scores of tokens begin .. end - 1 to scores[q][token - origin].
template <typename Element>
inline void score(const KvLayout& layout, const KvHead& kv, int64_t begin, int64_t end,
                  int64_t origin, const Query* queries, int64_t num_queries,
                  float (*scores)[kSplitTokens]) {
  const int64_t first = kv.first_token;
  for (int64_t t = begin; t < end; t += 8) {
    const Element* rows[8];
    token_rows(layout, kv.keys, kv.table, t - first, end - first, rows);
    const int64_t count = end - t < 8 ? end - t : 8;
    Lanes scales = splat(1);
    if constexpr (std::is_same_v<Element, int8_t>) {
      for (int64_t i = 0; i < count; ++i) {
        scales[i] = token_scale(layout, kv.key_scales, kv.table, t + i - first);
      }
    }
    auto put = [&](const Lanes* out, int64_t q, int width) {
      for (int i = 0; i < width; ++i) {
        Lanes values = out[i];
        if constexpr (std::is_same_v<Element, int8_t>) values = values * scales;
        store_partial(scores[q + i] + (t - origin), values, count);
      }
    };
    int64_t q = 0;
    Lanes out[4];
    for (; q + 4 <= num_queries; q += 4) {
      score_eight<Element, 4>(rows, queries + q, layout.head_dim, out);
      put(out, q, 4);
    }
    if (num_queries - q == 3) {
      score_eight<Element, 3>(rows, queries + q, layout.head_dim, out);
      put(out, q, 3);
    } else if (num_queries - q == 2) {
      score_eight<Element, 2>(rows, queries + q, layout.head_dim, out);
      put(out, q, 2);
    } else if (num_queries - q == 1) {
      score_eight<Element, 1>(rows, queries + q, layout.head_dim, out);
      put(out, q, 1);
    }
  }
}

// Where a split's values are, and their scales in int8 caches.
template <typename Element>
struct Values {
  const Element* rows[kSplitTokens + 7];
  float scales[kSplitTokens];
};

// states[q] += weight * value, token by token, for Q queries and V vectors of the head.
template <typename Element, int Q, int V>
STAGEBEAM_INLINE void accumulate_part(const Values<Element>& values, int64_t count, int64_t first,
                                      const float (*weights)[kSplitTokens], const Query* queries,
                                      int64_t d, int64_t partial) {
  Lanes acc[Q][V];
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < V; ++v) acc[q][v] = load(queries[q].state + d + v * kLanes);
  }
  for (int64_t t = 0; t < count; ++t) {
    const Element* row = values.rows[t] + d;
    Lanes value[V];
    for (int v = 0; v < V; ++v) {
      value[v] = partial ? load_partial(row, partial) : load(row + v * kLanes);
    }
    for (int q = 0; q < Q; ++q) {
      float weight = weights[q][first + t];
      if constexpr (std::is_same_v<Element, int8_t>) weight *= values.scales[t];
      const Lanes wide = splat(weight);
      for (int v = 0; v < V; ++v) acc[q][v] += wide * value[v];
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < V; ++v) store(queries[q].state + d + v * kLanes, acc[q][v]);
  }
}

template <typename Element, int Q>
inline void accumulate_queries(const Values<Element>& values, int64_t count, int64_t first,
                               int64_t head_dim, const float (*weights)[kSplitTokens],
                               const Query* queries) {
  constexpr int V = Q == 1 ? 8 : Q == 2 ? 4 : 2;
  const int64_t whole = head_dim / kLanes * kLanes;
  int64_t d = 0;
  for (; d + V * kLanes <= whole; d += V * kLanes) {
    accumulate_part<Element, Q, V>(values, count, first, weights, queries, d, 0);
  }
  for (; d < whole; d += kLanes) {
    accumulate_part<Element, Q, 1>(values, count, first, weights, queries, d, 0);
  }
  if (d < head_dim) {
    accumulate_part<Element, Q, 1>(values, count, first, weights, queries, d, head_dim - d);
  }
}

template <typename Element>
inline void accumulate(const KvLayout& layout, const KvHead& kv, int64_t begin, int64_t end,
                       int64_t origin, const float (*weights)[kSplitTokens], const Query* queries,
                       int64_t num_queries) {
  Values<Element> values;
  for (int64_t t = begin; t < end; t += 8) {
    token_rows(layout, kv.values, kv.table, t - kv.first_token, end - kv.first_token,
               values.rows + (t - begin));
  }
  if constexpr (std::is_same_v<Element, int8_t>) {
    for (int64_t t = begin; t < end; ++t) {
      values.scales[t - begin] = token_scale(layout, kv.value_scales, kv.table, t - kv.first_token);
    }
  }
  int64_t q = 0;
  auto part = [&](auto width) {
    accumulate_queries<Element, decltype(width)::value>(values, end - begin, begin - origin,
                                                        layout.head_dim, weights + q, queries + q);
    q += decltype(width)::value;
  };
  while (num_queries - q >= 4) part(std::integral_constant<int, 4>{});
  if (num_queries - q == 3) {
    part(std::integral_constant<int, 3>{});
  } else if (num_queries - q == 2) {
    part(std::integral_constant<int, 2>{});
  } else if (num_queries - q == 1) {
    part(std::integral_constant<int, 1>{});
  }
}

// Scores of the first `count` of `total` tokens to weights in place, zeros past them; returns
// (largest, sum).
inline void to_weights(float* scores, int64_t count, int64_t total, float* largest, float* sum) {
  const int64_t end = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t t = count; t < end; ++t) scores[t] = -std::numeric_limits<float>::infinity();
  Lanes top = load(scores);
  for (int64_t t = kLanes; t < end; t += kLanes) top = larger(load(scores + t), top);
  *largest = max_lanes(top);
  const Lanes base = splat(*largest);
  Lanes weight_sum{};
  for (int64_t t = 0; t < end; t += kLanes) {
    const Lanes weights = exponential(load(scores + t) - base);
    store(scores + t, weights);
    weight_sum += weights;
  }
  *sum = sum_lanes(weight_sum);
  for (int64_t t = end; t < total; ++t) scores[t] = 0;
}

template <typename Element>
void attend_split(const Tile& tile) {
  alignas(64) float scores[kMaxTileQueries][kSplitTokens];
  const KvLayout& layout = *tile.layout;
  const int64_t shared_end = std::min(tile.end, tile.shared_end);
  if (tile.begin < shared_end) {
    score<Element>(layout, *tile.shared, tile.begin, shared_end, tile.begin, tile.queries,
                   tile.num_queries, scores);
  }
  // Runs of queries with one tail.
  auto each_tail = [&](auto&& work) {
    const int64_t tail_begin = std::max(tile.begin, tile.shared_end);
    for (int64_t q = 0, next = 0; q < tile.num_queries; q = next) {
      const Query& query = tile.queries[q];
      next = tile.run_end(q);
      const int64_t tail_end = std::min(tile.end, query.limit);
      if (query.tail != nullptr && tail_begin < tail_end) work(q, next - q, tail_begin, tail_end);
    }
  };
  each_tail([&](int64_t q, int64_t count, int64_t begin, int64_t end) {
    score<Element>(layout, *tile.queries[q].tail, begin, end, tile.begin, tile.queries + q, count,
                   scores + q);
  });
  for (int64_t q = 0; q < tile.num_queries; ++q) {
    float* state = tile.queries[q].state;
    const int64_t count = std::min(tile.end, tile.queries[q].limit) - tile.begin;
    for (int64_t d = 0; d < padded(layout.head_dim); ++d) state[d] = 0;
    float* tail = state + padded(layout.head_dim);
    if (count > 0) {
      to_weights(scores[q], count, tile.end - tile.begin, tail, tail + 1);
    } else {
      for (float& score : scores[q]) score = 0;
      tail[0] = -std::numeric_limits<float>::infinity();
      tail[1] = 0;
    }
  }
  if (tile.begin < shared_end) {
    accumulate<Element>(layout, *tile.shared, tile.begin, shared_end, tile.begin, scores,
                        tile.queries, tile.num_queries);
  }
  each_tail([&](int64_t q, int64_t count, int64_t begin, int64_t end) {
    accumulate<Element>(layout, *tile.queries[q].tail, begin, end, tile.begin, scores + q,
                        tile.queries + q, count);
  });
}

template <typename Element>
void attend_format(TileSource& tiles) {
  each_tile(tiles, attend_split<Element>);
}

void attend(TileSource& tiles) {
  switch (tiles.layout().format) {
    case CacheFormat::kFloat32:
      return attend_format<float>(tiles);
    case CacheFormat::kBfloat16:
      return attend_format<Bfloat16>(tiles);
    case CacheFormat::kInt8:
      return attend_format<int8_t>(tiles);
    case CacheFormat::kFloat16:
      return attend_format<Float16>(tiles);
  }
}

void fold_states(const float* states, int64_t num_states, int64_t head_dim, float* into) {
  const int64_t width = padded(head_dim), stride = state_size(head_dim);
  for (int64_t s = 0; s < num_states; ++s) {
    const float* state = states + s * stride;
    if (state[width + 1] == 0) continue;
    const float largest = std::max(into[width], state[width]);
    // One factor is 1, and before any tokens the other 0.
    const bool is_first = into[width + 1] == 0, is_larger = is_first || state[width] >= into[width];
    const float other = is_first ? 0 : std::exp(-std::abs(into[width] - state[width]));
    const float kept = is_larger ? other : 1, added = is_larger ? 1 : other;
    for (int64_t d = 0; d < width; d += kLanes) {
      store(into + d, splat(kept) * load(into + d) + splat(added) * load(state + d));
    }
    into[width + 1] = kept * into[width + 1] + added * state[width + 1];
    into[width] = largest;
  }
}
