// Softmax with a query a column: its scores are [tokens][kColumns], kColumns = 4, 8 or 16, so that
// a vector has 16 / kColumns tokens. A sum adds every fourth token, then these four: the same bits
// for any kColumns. Weights take the place of scores: those of 32 tokens begin where the scores of
// these began, kLanes pairs a query. Included by attention_amx.cpp.

// Pairs of elements first .. first + 31 of `count` queries, [16 pairs][columns]; `left` of the
// elements are there.
inline void pack_columns(const Query* queries, int64_t count, int columns, int64_t first,
                         int64_t left, uint32_t* packed) {
  __m512i words[16];
  STAGEBEAM_UNROLL for (int q = 0; q < 16; ++q) {
    words[q] = q < count ? to_pairs(queries[q].query + first, left) : _mm512_setzero_si512();
  }
  if (columns == 4) {
    __m512i r[4] = {words[0], words[1], words[2], words[3]};
    transpose_quarters(r);
    const __m512i low[2] = {_mm512_shuffle_i32x4(r[0], r[1], 0x44),
                            _mm512_shuffle_i32x4(r[2], r[3], 0x44)};
    const __m512i high[2] = {_mm512_shuffle_i32x4(r[0], r[1], 0xee),
                             _mm512_shuffle_i32x4(r[2], r[3], 0xee)};
    _mm512_store_si512(packed, _mm512_shuffle_i32x4(low[0], low[1], 0x88));
    _mm512_store_si512(packed + 16, _mm512_shuffle_i32x4(low[0], low[1], 0xdd));
    _mm512_store_si512(packed + 32, _mm512_shuffle_i32x4(high[0], high[1], 0x88));
    _mm512_store_si512(packed + 48, _mm512_shuffle_i32x4(high[0], high[1], 0xdd));
    return;
  }
  transpose(words);
  STAGEBEAM_UNROLL for (int p = 0; p < 16; ++p) {
    if (columns == 16) {
      _mm512_store_si512(packed + p * 16, words[p]);
    } else {
      _mm256_store_si256(reinterpret_cast<__m256i*>(packed + p * 8),
                         _mm512_castsi512_si256(words[p]));
    }
  }
}

// All lanes of a column get what `combine` makes of them.
template <int kColumns, typename Combine>
inline __m512 across(__m512 x, Combine&& combine) {
  if constexpr (kColumns == 4) x = combine(x, _mm512_shuffle_f32x4(x, x, 0x4e));
  if constexpr (kColumns == 4) x = combine(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  if constexpr (kColumns == 8) x = combine(x, _mm512_shuffle_f32x4(x, x, 0x4e));
  return x;
}

// Where pairs of neighbouring tokens' halves come from.
template <int kColumns>
struct PairOrder {
  uint16_t at[32];
  constexpr PairOrder() : at() {
    for (int i = 0; i < 16; ++i) {
      at[2 * i] = static_cast<uint16_t>(i / kColumns * 2 * kColumns + i % kColumns);
      at[2 * i + 1] = static_cast<uint16_t>(at[2 * i] + kColumns);
    }
  }
};
alignas(64) constexpr PairOrder<16> kOrder16;
alignas(64) constexpr PairOrder<8> kOrder8;

// Weights of 32 tokens, which weigh(v) makes a vector at a time and in order, to 16 pairs a query.
// All are made before the first is stored: `out` is where their scores are.
template <typename Weigh>
inline void put_sixteen(Weigh&& weigh, uint32_t* out) {
  const __m512i order = _mm512_load_si512(kOrder16.at);
  __m512i words[16];
  STAGEBEAM_UNROLL for (int p = 0; p < 16; ++p) {
    const __m512 even = weigh(2 * p), odd = weigh(2 * p + 1);
    words[p] = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
  }
  transpose(words);
  STAGEBEAM_UNROLL for (int q = 0; q < 16; ++q) _mm512_store_si512(out + q * kLanes, words[q]);
}

template <typename Weigh>
inline void put_eight(Weigh&& weigh, uint32_t* out) {
  const __m512i order = _mm512_load_si512(kOrder8.at);
  __m512 x[16];
  STAGEBEAM_UNROLL for (int v = 0; v < 16; ++v) x[v] = weigh(v);
  __m512i z[8];
  STAGEBEAM_UNROLL for (int v = 0; v < 8; ++v) {  // pairs v and v + 8
    z[v] = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(x[v + 8], x[v]));
  }
  transpose_quarters(z);
  const __m512i low = _mm512_set_epi64(13, 12, 5, 4, 9, 8, 1, 0);
  const __m512i high = _mm512_set_epi64(15, 14, 7, 6, 11, 10, 3, 2);
  STAGEBEAM_UNROLL for (int c = 0; c < 4; ++c) {
    _mm512_store_si512(out + c * kLanes, _mm512_permutex2var_epi64(z[c], low, z[c + 4]));
    _mm512_store_si512(out + (c + 4) * kLanes, _mm512_permutex2var_epi64(z[c], high, z[c + 4]));
  }
}

template <typename Weigh>
inline void put_four(Weigh&& weigh, uint32_t* out) {
  // In each quarter: halves 0 and 4, 1 and 5, 2 and 6, 3 and 7.
  const __m512i mix =
      _mm512_broadcast_i32x4(_mm_set_epi8(15, 14, 7, 6, 13, 12, 5, 4, 11, 10, 3, 2, 9, 8, 1, 0));
  __m512 x[8];
  STAGEBEAM_UNROLL for (int v = 0; v < 8; ++v) x[v] = weigh(v);
  __m512i y[4];
  STAGEBEAM_UNROLL for (int m = 0; m < 4; ++m) {  // pair 4 * m + j in quarter j
    y[m] = _mm512_shuffle_epi8((__m512i)_mm512_cvtne2ps_pbh(x[2 * m + 1], x[2 * m]), mix);
  }
  transpose_quarters(y);
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  STAGEBEAM_UNROLL for (int q = 0; q < 4; ++q) {
    _mm512_store_si512(out + q * kLanes, _mm512_permutexvar_epi32(order, y[q]));
  }
}

// Scores of `count` tokens from `begin` on become pairs of weights in their place, zeros behind
// them up to a multiple of 32; the states get the largest score and the sum, at `state_tail`.
// meanwhile() is called once in four vectors.
template <int kColumns, typename Meanwhile>
inline void to_weights(float* scores, int64_t begin, int64_t count, const Query* queries,
                       int64_t num_queries, int64_t state_tail, Meanwhile&& meanwhile) {
  constexpr int kTokensAVector = kLanes / kColumns, kVectorsALine = kBlock / kTokensAVector;
  const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  const int64_t num_lines = (count + kBlock - 1) / kBlock;
  const int64_t num_vectors = num_lines * kVectorsALine;
  alignas(64) int32_t seen[kLanes] = {};
  int64_t least = count;
  for (int64_t q = 0; q < num_queries; ++q) {
    seen[q] = static_cast<int32_t>(std::clamp<int64_t>(queries[q].limit - begin, 0, count));
    least = std::min<int64_t>(least, seen[q]);
  }
  if (least < num_lines * kBlock) {
    for (int64_t t = 1; t < kTokensAVector; ++t) std::copy_n(seen, kColumns, seen + t * kColumns);
    const __m512i ends = _mm512_load_si512(seen);
    const __m512i within =
        _mm512_set_epi32(15 / kColumns, 14 / kColumns, 13 / kColumns, 12 / kColumns, 11 / kColumns,
                         10 / kColumns, 9 / kColumns, 8 / kColumns, 7 / kColumns, 6 / kColumns,
                         5 / kColumns, 4 / kColumns, 3 / kColumns, 2 / kColumns, 1 / kColumns, 0);
    for (int64_t v = least / kTokensAVector; v < num_vectors; ++v) {
      const __m512i token =
          _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(v * kTokensAVector)), within);
      const __mmask16 is_seen = _mm512_cmplt_epi32_mask(token, ends);
      float* place = scores + v * kLanes;
      _mm512_store_ps(place, _mm512_mask_loadu_ps(lowest, is_seen, place));
    }
  }
  __m512 tops[4] = {lowest, lowest, lowest, lowest};
  for (int64_t v = 0; v < num_vectors; v += 4) {
    STAGEBEAM_UNROLL for (int i = 0; i < 4; ++i) {
      tops[i] = _mm512_max_ps(tops[i], _mm512_load_ps(scores + (v + i) * kLanes));
    }
  }
  const __m512 largest = across<kColumns>(
      _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3])),
      [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
  const __mmask16 has_tokens = _mm512_cmp_ps_mask(largest, lowest, _CMP_NEQ_UQ);
  const __m512 log2e = _mm512_set1_ps(kLog2E);
  const __m512 base = _mm512_maskz_mul_ps(has_tokens, largest, _mm512_set1_ps(-kLog2E));
  constexpr int kSums = 4 / kTokensAVector;
  __m512 sums[kSums];
  STAGEBEAM_UNROLL for (int i = 0; i < kSums; ++i) sums[i] = _mm512_setzero_ps();
  for (int64_t line = 0; line < num_lines; ++line) {
    float* from = scores + line * kVectorsALine * kLanes;
    auto weigh = [&](int v) __attribute__((always_inline)) {
      if (v % 16 == 15) keep_awake();
      if (v % 4 == 3) meanwhile();
      const __m512 y = _mm512_fmadd_ps(_mm512_load_ps(from + v * kLanes), log2e, base);
      const __m512 weight = power_of_two(y);
      sums[v % kSums] = _mm512_add_ps(sums[v % kSums], weight);
      return weight;
    };
    auto* out = reinterpret_cast<uint32_t*>(from);
    if constexpr (kColumns == 16) put_sixteen(weigh, out);
    if constexpr (kColumns == 8) put_eight(weigh, out);
    if constexpr (kColumns == 4) put_four(weigh, out);
  }
  const __m512 sum =
      across<kColumns>(kSums == 4   ? _mm512_add_ps(_mm512_add_ps(sums[0], sums[2 % kSums]),
                                                    _mm512_add_ps(sums[1 % kSums], sums[3 % kSums]))
                       : kSums == 2 ? _mm512_add_ps(sums[0], sums[1 % kSums])
                                    : sums[0],
                       [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
  alignas(64) float tails[2][kLanes];
  _mm512_store_ps(tails[0], largest);
  _mm512_store_ps(tails[1], sum);
  for (int64_t q = 0; q < num_queries; ++q) {
    float* tail = queries[q].state + state_tail;
    tail[0] = tails[0][q];
    tail[1] = tails[1][q];
  }
}
