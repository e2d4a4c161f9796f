// What attention over bfloat16 caches by products of pairs has in common; included like simd8.h, by
// attention_bf16.cpp and attention_amx.cpp.
//
// Walks over a split's tokens, asks for the lines that are read next, and makes tiles of pairs of
// neighbouring tokens' values. A Product has the arithmetic: what a query gets from it does not
// depend on the queries beside it.

constexpr int kLanes = 16;
constexpr int64_t kLineBytes = 64;
constexpr int kVectors = 4;                // of a tile's line
constexpr int kWidth = kVectors * kLanes;  // tokens of a key tile, elements of a value tile
constexpr int kBlock = 2 * kLanes;         // elements of a line
constexpr int kTileTokens = kWidth;
constexpr int kPairs = kTileTokens / 2;  // lines of a tile
constexpr int kSplitPairs = kSplitTokens / 2;
static_assert(kSplitTokens % kTileTokens == 0);

struct alignas(64) PairTile {
  uint32_t lines[kPairs][kWidth];
};

// Elements first .. first + count - 1 of an array, count in 0 .. 32, and zeros.
inline __m512i load_halves(const Bfloat16* p, int64_t count) {
  if (count >= 32) return _mm512_loadu_si512(p);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, p);
}
// The first `count` of a block's elements, and zeros behind them.
inline __m512i to_pairs(const float* p, int64_t count) {
  auto whole = [](const float* at) __attribute__((always_inline)) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(at + kLanes), _mm512_loadu_ps(at));
  };
  if (count >= kBlock) return whole(p);
  alignas(64) float rest[kBlock] = {};
  std::copy_n(p, count, rest);
  return whole(rest);
}

// Quarter j of r[4 * i + c] becomes words c + 4 * j of rows 4 * i .. 4 * i + 3.
template <int kRows>
inline __attribute__((always_inline)) void transpose_quarters(__m512i (&r)[kRows]) {
  __m512i t[kRows];
  STAGEBEAM_UNROLL for (int i = 0; i < kRows; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  STAGEBEAM_UNROLL for (int i = 0; i < kRows; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
}

// A 16 x 16 matrix of 32-bit words, in place.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  transpose_quarters(r);
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

// Calls run(token, count, place, room) for tokens begin .. end - 1 of a head, a block at a time:
// `count` tokens from `token` on, the first one `place` elements from the head's, and room for
// `room` >= count of them.
template <typename Run>
void each_run(const KvLayout& layout, const KvHead& head, int64_t begin, int64_t end, Run&& run) {
  int64_t token = begin - head.first_token;
  if (head.table == nullptr) {
    run(begin, end - begin, token * layout.token_stride, layout.block_size - token);
    return;
  }
  const int32_t* block = head.table + token / layout.block_size;
  token %= layout.block_size;
  while (begin < end) {
    const int64_t room = layout.block_size - token, count = std::min(room, end - begin);
    run(begin, count, *block * layout.block_stride + token * layout.token_stride, room);
    begin += count;
    token = 0;
    ++block;
  }
}

// Asks for cache lines that are read later, a few at a time: of a burst most are dropped.
class Prefetcher {
 public:
  Prefetcher(const KvLayout& layout, const TokensAhead& tokens, LinesAhead* lines)
      : layout_(layout),
        keys_(static_cast<const std::byte*>(tokens.head.keys)),
        values_(static_cast<const std::byte*>(tokens.head.values)),
        lines_(lines),
        left_(std::max<int64_t>(tokens.end - tokens.begin, 0)) {
    if (left_ == 0) return;
    const int64_t token = tokens.begin - tokens.head.first_token;
    place_ = token * layout.token_stride;
    run_ = left_;
    if (tokens.head.table == nullptr) return;
    block_ = tokens.head.table + token / layout.block_size;
    enter(token % layout.block_size);
  }
  // The keys and values of the next `count` tokens.
  void ask(int64_t count) {
    for (; count > 0 && left_ > 0; --count) {
      if (run_ == 0) enter(0);
      const int64_t first = place_ * kElement, end = first + layout_.head_dim * kElement;
      for (int64_t at = first; at < end; at += kLineBytes) {
        _mm_prefetch(keys_ + at, _MM_HINT_T1);
        _mm_prefetch(values_ + at, _MM_HINT_T1);
      }
      place_ += layout_.token_stride;
      --run_;
      --left_;
    }
  }
  // `count` lines that the caller asks for; null where there are no more.
  const std::byte* take_lines(int64_t count) {
    if (lines_ == nullptr || lines_->end - lines_->next < count * kLineBytes) return nullptr;
    const std::byte* next = lines_->next;
    lines_->next += count * kLineBytes;
    return next;
  }

  static constexpr int64_t kElement = sizeof(Bfloat16);

 private:
  // The next block, from its `token` on.
  void enter(int64_t token) {
    place_ = *block_++ * layout_.block_stride + token * layout_.token_stride;
    run_ = layout_.block_size - token;
  }

  const KvLayout& layout_;
  const std::byte *keys_, *values_;
  LinesAhead* lines_;
  const int32_t* block_ = nullptr;
  int64_t place_ = 0, run_ = 0, left_;  // run_: tokens of the block that are left
};

// Line p: tokens 2 * p and 2 * p + 1 of elements first .. first + width - 1. In a block of 32
// elements, whose quarters are 8, come the first halves of its quarters and then the second ones.
// meanwhile() is called once a line.
template <typename Meanwhile>
inline void fill_values(const Bfloat16* const* rows, int64_t count, int64_t first, int64_t width,
                        uint32_t (*lines)[kWidth], Meanwhile&& meanwhile) {
  const int64_t whole = width / kBlock * kBlock;
  auto put = [](uint32_t* line, __m512i even, __m512i odd) {
    _mm512_store_si512(line, _mm512_unpacklo_epi16(even, odd));
    _mm512_store_si512(line + kLanes, _mm512_unpackhi_epi16(even, odd));
  };
  for (int64_t p = 0; 2 * p < count; ++p) {
    meanwhile();
    const Bfloat16 *even = rows[2 * p] + first, *odd = rows[std::min(2 * p + 1, count - 1)] + first;
    uint32_t* line = lines[p];
    for (int64_t d = 0; d < whole; d += kBlock) {
      put(line + d, _mm512_loadu_si512(even + d), _mm512_loadu_si512(odd + d));
    }
    if (whole < width) {
      put(line + whole, load_halves(even + whole, width - whole),
          load_halves(odd + whole, width - whole));
    }
  }
  if (count % 2 != 0) {  // the last one was its own neighbour
    for (int64_t d = 0; d < width; d += kLanes) {
      __m512i* place = reinterpret_cast<__m512i*>(lines[count / 2] + d);
      *place = _mm512_and_si512(*place, _mm512_set1_epi32(0xffff));
    }
    if (whole < width) {
      __m512i* place = reinterpret_cast<__m512i*>(lines[count / 2] + whole + kLanes);
      *place = _mm512_and_si512(*place, _mm512_set1_epi32(0xffff));
    }
  }
}

// Sums in the order of fill_values' elements, of which `count` are wanted.
inline void put_values(const float* sums, int64_t count, float* state) {
  const __m512i low_order = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i high_order = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  auto put = [&](int64_t d, __m512d values) {
    const int64_t left = std::clamp<int64_t>(count - d, 0, kLanes);
    const auto mask = static_cast<__mmask16>((uint32_t{1} << left) - 1);
    _mm512_mask_storeu_ps(state + d, mask, _mm512_castpd_ps(values));
  };
  for (int64_t d = 0; d < count; d += kBlock) {
    const __m512d a = _mm512_loadu_pd(sums + d), b = _mm512_loadu_pd(sums + d + kLanes);
    put(d, _mm512_permutex2var_pd(a, low_order, b));
    put(d + kLanes, _mm512_permutex2var_pd(a, high_order, b));
  }
}

// 2^y within 2.6e-6 of it, of which weights keep 2^-9; 0 below -126.
inline __m512 power_of_two(__m512 y) {
  const __mmask16 is_kept = _mm512_cmp_ps_mask(y, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
  const __m512 r = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(0.013534168f);
  for (const float c : {0.05201146f, 0.24144275f, 0.69300383f, 1.0000026f}) {
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  }
  return _mm512_maskz_scalef_ps(is_kept, p, y);
}
constexpr float kLog2E = 1.44269504f;

// Where tokens begin .. end - 1 of a split are.
struct Rows {
  static constexpr int64_t kPlaces = 8;  // written at once
  alignas(64) const Bfloat16* keys[kSplitTokens + kPlaces];
  alignas(64) const Bfloat16* values[kSplitTokens + kPlaces];
  bool is_run[kSplitTokens / kLanes];  // sixteen tokens' places are a token's stride apart

  void find(const KvLayout& layout, const KvHead& kv, int64_t begin, int64_t end, int64_t origin) {
    for (int64_t t = (begin - origin) / kLanes; t * kLanes < end - origin; ++t) is_run[t] = false;
    const int64_t step = layout.token_stride * int64_t{sizeof(Bfloat16)};
    const __m512i steps =
        _mm512_mullo_epi64(_mm512_set1_epi64(step), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
    auto put = [&](const Bfloat16** places, const Bfloat16* place) {
      const auto at = static_cast<int64_t>(reinterpret_cast<intptr_t>(place));
      _mm512_storeu_si512(places, _mm512_add_epi64(_mm512_set1_epi64(at), steps));
    };
    each_run(layout, kv, begin, end, [&](int64_t token, int64_t count, int64_t at, int64_t room) {
      const int64_t first = token - origin, last = first + count;
      const Bfloat16* key = static_cast<const Bfloat16*>(kv.keys) + at;
      const Bfloat16* value = static_cast<const Bfloat16*>(kv.values) + at;
      for (int64_t t = first; t < last; t += kPlaces) {
        put(keys + t, key);
        put(values + t, value);
        key += kPlaces * layout.token_stride;
        value += kPlaces * layout.token_stride;
      }
      // Those behind the last one that is asked for may be read, too.
      const bool is_end = token + count == end;
      for (int64_t t = (first + kLanes - 1) / kLanes * kLanes; t < last; t += kLanes) {
        is_run[t / kLanes] = t + kLanes <= first + room && (is_end || t + kLanes <= last);
      }
    });
  }
};
