// Attention over bfloat16 caches by products of pairs, but for the products themselves; included
// like simd8.h, by attention_bf16.cpp and attention_amx.cpp.
//
// A split's keys are transposed and its values interleaved into small tiles of pairs, once for all
// queries; scores and weighted sums are then the same product: pairs of a query, or of its weights,
// times a tile. What a query gets does not depend on the queries beside it where the product of one
// row does not depend on the others.

constexpr int kLanes = 16;
constexpr int kVectors = 4;                // of a tile's line
constexpr int kWidth = kVectors * kLanes;  // tokens of a key tile, elements of a value tile
constexpr int kPairs = kSplitTokens / 2;   // lines of a tile
static_assert(kWidth == kSplitTokens && kMaxTileQueries <= 64);

struct alignas(64) PairTile {
  uint32_t lines[kPairs][kWidth];
};

// Elements first .. first + count - 1 of an array, count in 0 .. 32, and zeros.
inline __m512i load_halves(const Bfloat16* p, int64_t count) {
  if (count >= 32) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, p);
}
inline __m512i to_pairs(const float* low, const float* high) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low));
}

// A 16 x 16 matrix of 32-bit words, in place.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  STAGEBEAM_UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  STAGEBEAM_UNROLL for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Quarter j of r[4 * i + c] now holds words c + 4 * j of rows 4 * i .. 4 * i + 3.
  STAGEBEAM_UNROLL for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    const __m512i e = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
    t[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
  }
  STAGEBEAM_UNROLL for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// Walks over a head's tokens, whose places are `at` elements from its first.
class TokenWalk {
 public:
  TokenWalk(const KvLayout& layout, const KvHead& head, int64_t first) : layout_(layout) {
    int64_t token = first - head.first_token;
    if (head.table != nullptr) {
      block_ = head.table + token / layout.block_size;
      token %= layout.block_size;
      left_ = layout.block_size - token;
      at = *block_ * layout.block_stride;
    }
    at += token * layout.token_stride;
  }
  void next() {
    at += layout_.token_stride;
    if (--left_ > 0 || block_ == nullptr) return;
    is_at_end_ = true;
  }
  // Before a token's place is used: the block behind the last token may not exist.
  void enter() {
    if (!is_at_end_) return;
    is_at_end_ = false;
    left_ = layout_.block_size;
    at = *++block_ * layout_.block_stride;
  }

  int64_t at = 0;

 private:
  const KvLayout& layout_;
  const int32_t* block_ = nullptr;
  int64_t left_ = 0;  // tokens of the block, from this one on
  bool is_at_end_ = false;
};

// Asks for cache lines that are read later, a few at a time: of a burst most are dropped.
class Prefetcher {
 public:
  Prefetcher(const KvLayout& layout, const TokensAhead& tokens, LinesAhead* lines)
      : walk_(layout, tokens.begin < tokens.end ? tokens.head : KvHead{}, tokens.begin),
        keys_(static_cast<const Bfloat16*>(tokens.head.keys)),
        values_(static_cast<const Bfloat16*>(tokens.head.values)),
        lines_(lines),
        head_dim_(layout.head_dim),
        left_(tokens.end - tokens.begin) {}
  // The next `count` lines of keys, and of values.
  void ask(int64_t count) {
    for (; count > 0 && left_ > 0; --count) {
      walk_.enter();
      _mm_prefetch(keys_ + walk_.at + element_, _MM_HINT_T1);
      _mm_prefetch(values_ + walk_.at + element_, _MM_HINT_T1);
      element_ += kLine / int64_t{sizeof(Bfloat16)};
      if (element_ < head_dim_) continue;
      element_ = 0;
      --left_;
      walk_.next();
    }
  }
  // `count` lines that the caller asks for; null where there are no more.
  const std::byte* take_lines(int64_t count) {
    if (lines_ == nullptr || lines_->end - lines_->next < count * kLine) return nullptr;
    const std::byte* next = lines_->next;
    lines_->next += count * kLine;
    return next;
  }

  static constexpr int64_t kLine = 64;

 private:
  TokenWalk walk_;
  const Bfloat16 *keys_, *values_;
  LinesAhead* lines_;
  int64_t head_dim_, left_, element_ = 0;
};

// Line p of the tile: elements 2 * p and 2 * p + 1, from `first` on, of each token's key.
template <typename Product>
void fill_keys(const Bfloat16* const* rows, int64_t count, int64_t first, int64_t head_dim,
               PairTile& tile, Prefetcher& ahead) {
  for (int64_t token = 0; token < count; token += kLanes) {
    for (int64_t p = 0; p < kPairs && first + 2 * p < head_dim; p += kLanes) {
      __m512i words[16];
      Product::keep_awake();
      ahead.ask(8);
      STAGEBEAM_UNROLL for (int i = 0; i < 16; ++i) {
        const Bfloat16* row = rows[std::min(token + i, count - 1)];
        words[i] = load_halves(row + first + 2 * p, head_dim - first - 2 * p);
      }
      transpose(words);
      STAGEBEAM_UNROLL for (int i = 0; i < 16; ++i) {
        _mm512_store_si512(&tile.lines[p + i][token], words[i]);
      }
    }
  }
}

// Line p of the tile: tokens 2 * p and 2 * p + 1 of elements first .. first + 63.
template <typename Product>
void fill_values(const Bfloat16* const* rows, int64_t count, int64_t first, int64_t head_dim,
                 PairTile& tile, Prefetcher& ahead) {
  const __m512i low_order = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i high_order = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  for (int64_t p = 0; 2 * p < count; ++p) {
    if (p % 2 == 0) ahead.ask(2);
    if (p % 8 == 0) Product::keep_awake();
    for (int64_t d = 0; d < kWidth && first + d < head_dim; d += 32) {
      const int64_t left = head_dim - first - d;
      const __m512i even = load_halves(rows[2 * p] + first + d, left);
      const __m512i odd = 2 * p + 1 < count ? load_halves(rows[2 * p + 1] + first + d, left)
                                            : _mm512_setzero_si512();
      const __m512i low = _mm512_unpacklo_epi16(even, odd);   // quarter j: elements 8 * j + 0 .. 3
      const __m512i high = _mm512_unpackhi_epi16(even, odd);  // and 8 * j + 4 .. 7
      const __m512i first_half = _mm512_permutex2var_epi64(low, low_order, high);
      const __m512i second_half = _mm512_permutex2var_epi64(low, high_order, high);
      _mm512_store_si512(&tile.lines[p][d], first_half);
      _mm512_store_si512(&tile.lines[p][d + kLanes], second_half);
    }
  }
}

// e^x for x <= 0 within 2e-7; 0 below -87.
inline __m512 exponential(__m512 x) {
  const __mmask16 is_kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_GE_OQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693145752f), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(-1.42860677e-6f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720);
  for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  }
  return _mm512_maskz_scalef_ps(is_kept, p, n);
}

// Scores of `count` tokens to pairs of weights, zeros after them; returns (largest, sum).
inline void to_weights(const float* scores, int64_t count, uint32_t* weights, float* largest,
                       float* sum) {
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 x[kVectors];
  STAGEBEAM_UNROLL for (int v = 0; v < kVectors; ++v) {
    const int64_t left = std::clamp<int64_t>(count - v * kLanes, 0, kLanes);
    const auto mask = static_cast<__mmask16>((uint32_t{1} << left) - 1);
    x[v] = _mm512_mask_loadu_ps(lowest, mask, scores + v * kLanes);
  }
  const __m512 top = _mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3]));
  *largest = _mm512_reduce_max_ps(top);
  const __m512 base = _mm512_set1_ps(*largest);
  STAGEBEAM_UNROLL for (int v = 0; v < kVectors; ++v) {
    x[v] = exponential(_mm512_sub_ps(x[v], base));
  }
  *sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3])));
  STAGEBEAM_UNROLL for (int v = 0; v < kVectors; v += 2) {
    _mm512_storeu_si512(weights + v * kLanes / 2, (__m512i)_mm512_cvtne2ps_pbh(x[v + 1], x[v]));
  }
}

// Where tokens begin .. end - 1 of a split are.
struct Rows {
  const Bfloat16* keys[kSplitTokens];
  const Bfloat16* values[kSplitTokens];

  void find(const KvLayout& layout, const KvHead& kv, int64_t begin, int64_t end, int64_t origin) {
    const auto* key_base = static_cast<const Bfloat16*>(kv.keys);
    const auto* value_base = static_cast<const Bfloat16*>(kv.values);
    TokenWalk walk(layout, kv, begin);
    for (int64_t t = begin; t < end; ++t, walk.next()) {
      walk.enter();
      keys[t - origin] = key_base + walk.at;
      values[t - origin] = value_base + walk.at;
    }
  }
};

// All queries of which attend to the same `count` rows. A Product makes targets[q][0 .. width - 1]
// of sources[q]'s pairs times a tile's lines.
template <typename Product>
void attend_rows(const Product& product, const KvLayout& layout, const Rows& rows, int64_t begin,
                 int64_t count, const Query* queries, int64_t num_queries, Prefetcher& ahead) {
  if (count == 0) {
    for (int64_t q = 0; q < num_queries; ++q) {
      std::fill_n(queries[q].state, state_size(layout.head_dim), 0.0f);
      queries[q].state[padded(layout.head_dim)] = -std::numeric_limits<float>::infinity();
    }
    return;
  }
  PairTile tile;
  alignas(64) float scores[kMaxTileQueries][kSplitTokens];
  alignas(64) uint32_t pairs[kMaxTileQueries][kPairs];
  float* targets[kMaxTileQueries];
  const int64_t head_dim = layout.head_dim;
  for (int64_t q = 0; q < num_queries; ++q) targets[q] = scores[q];
  for (int64_t first = 0; first < head_dim; first += kWidth) {
    fill_keys<Product>(rows.keys, count, first, head_dim, tile, ahead);
    const int64_t width = std::min<int64_t>(kWidth, head_dim - first);
    for (int64_t q = 0; q < num_queries; ++q) {
      if (q % 8 == 0) Product::keep_awake();
      const float* query = queries[q].query + first;
      int64_t d = 0;
      for (; d + 32 <= width; d += 32) {
        _mm512_store_si512(&pairs[q][d / 2], to_pairs(query + d, query + d + kLanes));
      }
      if (d < width) {
        alignas(64) float rest[32] = {};
        std::copy_n(query + d, width - d, rest);
        _mm512_store_si512(&pairs[q][d / 2], to_pairs(rest, rest + kLanes));
      }
    }
    product.run(pairs, num_queries, tile, (width + 1) / 2, count, first == 0, targets, ahead);
  }
  for (int64_t q = 0; q < num_queries; ++q) {
    float* tail = queries[q].state + padded(head_dim);
    const int64_t seen = std::clamp<int64_t>(queries[q].limit - begin, 0, count);
    if (q % 2 == 0) Product::keep_awake();
    if (seen > 0) {
      to_weights(scores[q], seen, pairs[q], tail, tail + 1);
      ahead.ask(12);
    } else {
      std::fill_n(pairs[q], kPairs, 0);
      tail[0] = -std::numeric_limits<float>::infinity();
      tail[1] = 0;
    }
  }
  for (int64_t first = 0; first < head_dim; first += kWidth) {
    fill_values<Product>(rows.values, count, first, head_dim, tile, ahead);
    const int64_t width = std::min<int64_t>(kWidth, head_dim - first);
    const bool is_direct = Product::kHasFreeTargets && width % kLanes == 0;
    for (int64_t q = 0; q < num_queries; ++q) {
      targets[q] = is_direct ? queries[q].state + first : scores[q];
    }
    product.run(pairs, num_queries, tile, (count + 1) / 2, width, true, targets, ahead);
    for (int64_t q = 0; q < num_queries && !is_direct; ++q) {
      std::copy_n(scores[q], std::min<int64_t>(kWidth, padded(head_dim) - first),
                  queries[q].state + first);
    }
  }
}

template <typename Product>
void attend_split(const Tile& tile, const Product& product) {
  Rows rows;
  Prefetcher ahead(*tile.layout, tile.ahead, tile.lines_ahead);
  const int64_t shared_end = std::min(tile.end, tile.shared_end);
  if (tile.begin < shared_end) {
    rows.find(*tile.layout, *tile.shared, tile.begin, shared_end, tile.begin);
  }
  if (tile.end <= tile.shared_end) {
    attend_rows(product, *tile.layout, rows, tile.begin, tile.end - tile.begin, tile.queries,
                tile.num_queries, ahead);
    return;
  }
  // Runs of queries with one tail, behind the shared tokens.
  const int64_t tail_begin = std::max(tile.begin, tile.shared_end);
  for (int64_t q = 0, next = 0; q < tile.num_queries; q = next) {
    const Query& query = tile.queries[q];
    while (next < tile.num_queries && tile.queries[next].tail == query.tail) ++next;
    const int64_t end = std::min(tile.end, query.limit);
    if (query.tail != nullptr && tail_begin < end) {
      rows.find(*tile.layout, *query.tail, tail_begin, end, tile.begin);
    }
    attend_rows(product, *tile.layout, rows, tile.begin, std::max<int64_t>(end - tile.begin, 0),
                &query, next - q, ahead);
  }
}

template <typename Product>
void attend_tile(const Tile& tile) {
  const Product product(tile.num_queries);
  each_split(tile, [&](const Tile& split) { attend_split(split, product); });
}
