// What attention with AMX works on: queries that attend to the same tokens, one unit after the
// other, and the cache lines of what comes next. Included by attention_amx.cpp.

// Queries that attend to the same tokens.
struct Unit {
  const Tile* tile;
  const Query* queries;
  int64_t num_queries;
  int64_t count;  // tokens
  Rows rows;

  int64_t head_dim() const { return tile->layout->head_dim; }
  // Of sixteen queries.
  int64_t num_groups() const { return (num_queries + kLanes - 1) / kLanes; }
  int64_t group_size(int64_t group) const {
    return std::min<int64_t>(num_queries - group * kLanes, kLanes);
  }
};

// Tiles' units one after the other.
class Units {
 public:
  explicit Units(TileSource& tiles) : tiles_(tiles) {}

  // False where there are no more. Makes states without tokens itself.
  bool next(Unit& unit) {
    while (true) {
      if (tile_ == nullptr) {
        tile_ = tiles_.next();
        if (tile_ == nullptr) return false;
        first_ = 0;
        has_units_ = false;
      }
      if (find(unit)) return has_units_ = true;
      const Tile& tile = *tile_;
      tile_ = nullptr;
      if (!has_units_) tiles_.done(tile);
    }
  }

 private:
  // The tile's next run of queries with one tail behind the shared tokens, or of all without tails.
  bool find(Unit& unit) {
    const Tile& tile = *tile_;
    const KvLayout& layout = *tile.layout;
    const int64_t shared_end = std::min(tile.end, tile.shared_end);
    while (first_ < tile.num_queries) {
      const Query* queries = tile.queries + first_;
      int64_t num_queries = tile.num_queries, end = tile.end;
      if (tile.end > shared_end) {
        num_queries = tile.run_end(first_) - first_;
        end = std::min(end, queries->limit);
      }
      first_ += num_queries;
      if (end <= tile.begin) {
        for (int64_t q = 0; q < num_queries; ++q) clear_state(queries[q].state, layout.head_dim);
        continue;
      }
      if (tile.begin < shared_end) {
        unit.rows.find(layout, *tile.shared, tile.begin, shared_end, tile.begin);
      }
      const int64_t tail_begin = std::max(tile.begin, tile.shared_end);
      if (tail_begin < end && queries->tail != nullptr) {
        unit.rows.find(layout, *queries->tail, tail_begin, end, tile.begin);
      }
      unit.tile = &tile;
      unit.queries = queries;
      unit.num_queries = num_queries;
      unit.count = end - tile.begin;
      return true;
    }
    return false;
  }

  TileSource& tiles_;
  const Tile* tile_ = nullptr;
  int64_t first_ = 0;  // query that is left
  bool has_units_ = false;
};

// A unit's values and then the next one's keys, whose cache lines are asked for in even steps of
// the unit's work: a burst of them would hold up what the products read from the second cache. All
// are asked for when two thirds of it are done, so that the last ones arrive.
class RowsAhead {
 public:
  void start(const Unit& unit, const Unit* next, int64_t num_steps) {
    first_ = {unit.rows.values, unit.count};
    then_ = next == nullptr ? Part{nullptr, 0} : Part{next->rows.keys, next->count};
    row_bytes_ = unit.head_dim() * int64_t{sizeof(Bfloat16)};
    rows_a_step_ = (first_.count + then_.count) * kOne * 3 / (2 * num_steps) + 1;
    due_ = 0;
  }
  void step(int64_t times = 1) {
    due_ += times * rows_a_step_;
    for (; due_ >= kOne; due_ -= kOne) {
      if (first_.count == 0) first_ = std::exchange(then_, {nullptr, 0});
      if (first_.count == 0) return;
      const char* row = reinterpret_cast<const char*>(*first_.rows);
      for (int64_t i = 0; i < row_bytes_; i += kLineBytes) _mm_prefetch(row + i, _MM_HINT_T1);
      ++first_.rows;
      --first_.count;
    }
  }

 private:
  static constexpr int64_t kOne = 256;
  struct Part {
    const Bfloat16* const* rows;
    int64_t count;
  };
  Part first_, then_;
  int64_t row_bytes_, rows_a_step_, due_;  // in parts of kOne
};
