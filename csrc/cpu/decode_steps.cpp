#include "decode_steps.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace stagebeam::cpu {

// Where each row's token goes and how many tokens it then has after its trunk.
void DecodeLoop::place_rows(const DecodeBatch& batch) {
  const BranchRows& rows = batch.branches;
  for (int64_t g = 0; g < rows.num_groups; ++g) {
    const int64_t trunk = rows.trunk_lens[g];
    for (int64_t r = rows.group_offsets[g]; r < rows.group_offsets[g + 1]; ++r) {
      const int64_t place = batch.positions[r] - trunk, column = place / batch.block_size;
      const int32_t* table = rows.tail_tables + r * rows.tail_width;
      if (place < 0 || column >= rows.tail_width || table[column] < 0) {
        throw std::invalid_argument("row " + std::to_string(r) + " has no block for position " +
                                    std::to_string(batch.positions[r]) + " after its trunk of " +
                                    std::to_string(trunk) + " tokens");
      }
      slots_[r] = static_cast<int32_t>(table[column] * batch.block_size + place % batch.block_size);
      tail_lens_[r] = static_cast<int32_t>(place + 1);
    }
  }
}

int64_t DecodeLoop::run(StepProgram& program, const DecodeBatch& batch, int64_t max_steps) {
  const int64_t num_rows = batch.branches.num_rows;
  slots_.resize(num_rows);
  tail_lens_.resize(num_rows);
  has_mlp_.assign(num_rows, 1);
  BranchRows branches = batch.branches;
  branches.tail_lens = tail_lens_.data();
  SampleRows sampling = batch.sampling;
  sampling.steps = batch.steps;
  sampling.states = batch.states;

  Pass pass;
  pass.num_rows = num_rows;
  pass.token_ids = batch.token_ids;
  pass.positions = batch.positions;
  pass.slots = slots_.data();
  pass.branches = &branches;
  pass.cross = batch.cross;
  pass.has_mlp = reinterpret_cast<const bool*>(has_mlp_.data());
  pass.tables = &batch.tables;
  pass.sampling = &sampling;
  for (int64_t step = 0; step < max_steps; ++step) {
    const int64_t first = step * num_rows;
    pass.sampled = {batch.out.token_ids + first, batch.out.logprobs + first,
                    batch.out.states + first, batch.out.finish + first};
    place_rows(batch);
    program.run(pass);
    for (int64_t r = 0; r < num_rows; ++r) {
      batch.token_ids[r] = pass.sampled.token_ids[r];
      batch.states[r] = pass.sampled.states[r];
      ++batch.positions[r];
      ++batch.steps[r];
    }
    const int8_t* finish = pass.sampled.finish;
    if (std::any_of(finish, finish + num_rows, [](int8_t code) { return code != 0; })) {
      return step + 1;
    }
  }
  return max_steps;
}

}  // namespace stagebeam::cpu
