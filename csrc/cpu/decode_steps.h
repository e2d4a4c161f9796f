// Several decode steps of a batch in one call: from the rows' last tokens to their next ones.
//
// Knows the rows' block tables, not the pool that they come from: the blocks of the coming steps
// must be in them already. Stops after a step in which a row finished, so no row ever runs past its
// end and the caller can let others take its place.
#pragma once

#include <cstdint>
#include <vector>

#include "step_program.h"

namespace stagebeam::cpu {

// A batch between two steps. What changes is changed in place; the outputs are
// [max_steps, num_rows].
struct DecodeBatch {
  int64_t block_size;
  BranchRows branches;     // its tail_lens are not read: they follow from the positions
  const CrossRows* cross;  // null where no row has an image
  int64_t* token_ids;      // [num_rows] each row's last token, not yet in the cache
  int64_t* positions;      // [num_rows] its place
  int32_t* steps;          // [num_rows] tokens sampled so far
  int32_t* states;         // [num_rows] of the tag automaton
  SampleRows sampling;     // its steps and states are the ones above
  TagTables tables;
  SampleOutput out;
};

class DecodeLoop {
 public:
  // Runs 1 .. max_steps steps and returns their number. Throws std::invalid_argument where a row
  // has no block for its token.
  int64_t run(StepProgram& program, const DecodeBatch& batch, int64_t max_steps);

 private:
  void place_rows(const DecodeBatch& batch);

  std::vector<int32_t> slots_, tail_lens_;
  std::vector<uint8_t> has_mlp_;  // all rows stand after their image
};

}  // namespace stagebeam::cpu
