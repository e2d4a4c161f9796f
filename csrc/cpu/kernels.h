// The operations above the matrix product, one instruction set's set of them in a table.
//
// Single-threaded pieces: a caller hands each thread its own rows or tiles. Activations are
// float32. Invariant: what a row gets does not depend on the rows beside it, nor on the thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "numbers.h"

namespace stagebeam::cpu {

enum class CacheFormat : int32_t { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kFloat16 = 3 };

int64_t element_bytes(CacheFormat format);

// How tokens lie in a cache, in elements. A token t of a sequence is in block table[t /
// block_size], or, without a table, at t * token_stride. Int8 caches have a scale a token and head
// beside them.
struct KvLayout {
  CacheFormat format;
  int64_t head_dim;
  int64_t block_size;
  int64_t block_stride;
  int64_t token_stride;
  int64_t scale_block_stride;
  int64_t scale_token_stride;
};

// Keys and values of one KV head; `table` is null for tokens that lie in a row. The table's first
// entry is the block of token `first_token`.
struct KvHead {
  const void* keys;
  const void* values;
  const float* key_scales;
  const float* value_scales;
  const int32_t* table;
  int64_t first_token;
};

// One query: a row's head.
//   query:  [head_dim padded to 8] with zeros, already times the softmax scale
//   limit:  attends to the tokens before this one
//   tail:   where tokens from `shared_end` on are; unused where limit <= shared_end
//   state:  [state_size] what comes out of a split: the sum of weighted values (head_dim padded to
//           8), then the largest score, then the sum of weights (0 where it attends to none of it)
struct Query {
  const float* query;
  int64_t limit;
  const KvHead* tail;
  float* state;
};

constexpr int64_t kMaxTileQueries = 64;
// Attention is summed in splits that start at multiples of this, and their states folded in order.
constexpr int64_t kSplitTokens = 256;

// Tokens begin .. end - 1 of a head, which the same thread reads next: their cache lines may be
// asked for meanwhile. No tokens for none.
struct TokensAhead {
  KvHead head;
  int64_t begin, end;
};

// Memory that a thread reads after its attention, which leaves much of the bandwidth idle. `next`
// moves on with what has been asked for.
struct LinesAhead {
  const std::byte* next = nullptr;
  const std::byte* end = nullptr;
};

// Attention of some queries over a split.
//   begin, end: its tokens, at most kSplitTokens; begin is a multiple of that
//   shared_end: tokens before it are the same for all queries and read from `shared`
// Consecutive queries with the same `tail` share its reads.
struct Tile {
  const KvLayout* layout;
  const KvHead* shared;
  int64_t begin;
  int64_t end;
  int64_t shared_end;
  Query* queries;
  int64_t num_queries;  // at most kMaxTileQueries

  // Where the run of queries with one tail ends that `first` begins.
  int64_t run_end(int64_t first) const {
    int64_t end = first + 1;
    while (end < num_queries && queries[end].tail == queries[first].tail) ++end;
    return end;
  }
};

// A run of tiles, for kernels that work on several at once.
class TileSource {
 public:
  TileSource(const KvLayout& layout, LinesAhead* lines_ahead)
      : layout_(layout), lines_ahead_(lines_ahead) {}
  virtual ~TileSource() = default;
  // The next one, which stays until it is done; null where there are no more.
  virtual const Tile* next() = 0;
  // All of a tile's states have been made. At most kMostTiles are not done at once.
  virtual void done(const Tile& tile) = 0;
  // What the tile after the one that was given last reads.
  virtual TokensAhead after() const { return {}; }
  // Of all tiles.
  const KvLayout& layout() const { return layout_; }
  // What the thread reads after them; null for nothing.
  LinesAhead* lines_ahead() const { return lines_ahead_; }

  static constexpr int kMostTiles = 3;

 protected:
  KvLayout layout_;
  LinesAhead* lines_ahead_;
};

// A state without a single key is zeros, -inf, 0.
constexpr int64_t padded(int64_t head_dim) {
  return (head_dim + 7) / 8 * 8;
}
// In whole cache lines.
constexpr int64_t state_size(int64_t head_dim) {
  return (padded(head_dim) + 2 + 15) / 16 * 16;
}

// The state of no tokens.
inline void clear_state(float* state, int64_t head_dim) {
  std::fill_n(state, state_size(head_dim), 0.0f);
  state[padded(head_dim)] = -std::numeric_limits<float>::infinity();
}

// Calls attend(tile) for each tile, one after the other.
template <typename Attend>
void each_tile(TileSource& tiles, Attend&& attend) {
  while (const Tile* tile = tiles.next()) {
    attend(*tile);
    tiles.done(*tile);
  }
}

struct Kernels {
  const char* name;
  // out = x / rms(x) * weight, [cols]
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t cols, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps,
                     int64_t cols, float* out);
  void (*add)(const float* x, const float* y, int64_t cols, float* out);
  float (*dot)(const float* x, const float* y, int64_t cols);
  // out = silu(gate) * up; out may be gate
  void (*silu_mul)(const float* gate, const float* up, int64_t cols, float* out);
  // Pairs element d with d + head_dim / 2; cos_sin is head_dim / 2 cosines, then sines. In place.
  void (*rotate)(float* head, const float* cos_sin, int64_t head_dim);
  // out[d] = x[d] * scale for d < cols, zeros up to padded(cols)
  void (*scale_padded)(const float* x, float scale, int64_t cols, float* out);
  void (*attend)(TileSource& tiles);
  // Folds num_states states that lie side by side into the state `into`, one after the other.
  void (*fold_states)(const float* states, int64_t num_states, int64_t head_dim, float* into);
  // Writes one head's vector to a cache; int8 writes its scale too.
  void (*store_head)(const float* x, int64_t cols, CacheFormat format, void* out, float* scale);
  float (*largest)(const float* x, int64_t count);
  // The largest of x, its first place, and the sum of exp(x - largest). Asks meanwhile for the
  // `count` numbers at `ahead`.
  void (*log_sum_exp)(const float* x, int64_t count, const float* ahead, float* largest,
                      int64_t* place, double* sum);
  // The sum of exp((x - largest) / temperature).
  double (*exp_sum)(const float* x, int64_t count, float largest, float temperature);
};

// The fastest table that this machine runs.
const Kernels& kernels();

extern const Kernels kGenericKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
// `attend` over bfloat16 caches with AVX-512's bf16 products: queries and softmax weights are
// rounded to bfloat16 too.
void attend_bf16_pairs(TileSource& tiles);
// The same with AMX's tiles.
void attend_bf16_tiles(TileSource& tiles);
#endif

}  // namespace stagebeam::cpu
