// Bindings of csrc/cpu's step program: a model's decoder, built once, run without the GIL.
#include <pybind11/stl.h>

#include <array>
#include <mutex>
#include <string>
#include <vector>

#include "../csrc/cpu/cpu_count.h"
#include "../csrc/cpu/decode_steps.h"
#include "../csrc/cpu/step_program.h"
#include "cpu_bindings.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace stagebeam::bindings {
namespace {

using namespace stagebeam::cpu;

// (format, block_size, token stride, head stride, keys, values, key scales, value scales) of a
// layer.
using CacheFields = std::array<int64_t, 8>;

std::vector<KvCache> to_caches(const std::vector<CacheFields>& fields) {
  std::vector<KvCache> caches;
  for (const CacheFields& f : fields) {
    caches.push_back({static_cast<CacheFormat>(f[0]), f[1], f[2], f[3], at<void>(f[4]),
                      at<void>(f[5]), at<float>(f[6]), at<float>(f[7])});
  }
  return caches;
}

SourceType to_source_type(const std::string& name) {
  if (name == "float32") return SourceType::kFloat32;
  if (name == "bfloat16") return SourceType::kBf16;
  if (name == "float16") return SourceType::kFp16;
  throw std::invalid_argument("weights must be float32, bfloat16 or float16, got " + name);
}

RowSet to_rows(const std::string& name) {
  if (name == "all") return RowSet::kAll;
  if (name == "image") return RowSet::kWithImage;
  if (name == "image_mlp") return RowSet::kWithImageMlp;
  throw std::invalid_argument("rows must be all, image or image_mlp, got " + name);
}

// A program, the lock that keeps its passes apart, and the arrays of a pass by address:
//   rows:     num_rows, token_ids, positions, slots
//   branches: num_groups, group_offsets, trunk_tables, trunk_width, trunk_lens, tail_tables,
//             tail_width, tail_lens
//   prefill:  num_seqs, cu_seqlens_q, seq_lens, block_tables, table_width
//   cross:    num_groups, group_offsets, group_slots, kv_lens, has_mlp; num_groups 0 for none
//   outputs:  num_outputs, output_rows, hidden
// and of several decode steps, csrc/cpu/decode_steps.h:
//   state:    num_rows, block_size, token_ids, positions, steps, states (all but the sizes change)
//   groups:   branches without tail_lens
//   images:   cross without has_mlp
//   sampling: seeds, uids, temperature, top_k, top_p, min_p, goal_masks, ignore_eos, max_tokens
//   tables:   next_state, accept_tag, eos_ids, num_eos_ids
//   sampled:  token_ids, logprobs, states, finish
struct GuardedProgram {
  GuardedProgram(const ProgramShape& shape, int num_threads)
      : program(shape, std::make_shared<ThreadPool>(num_threads)), vocab_size(shape.vocab_size) {}

  static CrossRows to_cross(int64_t num_groups, Address offsets, Address slots, Address kv_lens) {
    return {num_groups, at<int32_t>(offsets), at<int32_t>(slots), at<int32_t>(kv_lens)};
  }

  // Hidden states of the rows of one pass, decode or prefill.
  void run(Pass& pass, const std::array<int64_t, 4>& rows, const std::array<int64_t, 5>& c,
           const std::array<int64_t, 3>& out) {
    pass.num_rows = rows[0];
    pass.token_ids = at<int64_t>(rows[1]);
    pass.positions = at<int64_t>(rows[2]);
    pass.slots = at<int32_t>(rows[3]);
    const CrossRows cross = to_cross(c[0], c[1], c[2], c[3]);
    if (c[0] > 0) {
      pass.cross = &cross;
      pass.has_mlp = at<bool>(c[4]);
    }
    pass.num_outputs = out[0];
    pass.output_rows = at<int64_t>(out[1]);
    pass.hidden = at<float>(out[2]);
    const py::gil_scoped_release release;
    const std::lock_guard guard(mutex);
    program.run(pass);
  }

  void hidden_states(const std::array<int64_t, 4>& rows, const std::array<int64_t, 8>& b,
                     const std::array<int64_t, 5>& cross, const std::array<int64_t, 3>& out) {
    const BranchRows branches{rows[0],           b[0], at<int32_t>(b[1]),
                              at<int32_t>(b[2]), b[3], at<int32_t>(b[4]),
                              at<int32_t>(b[5]), b[6], at<int32_t>(b[7])};
    Pass pass;
    pass.branches = &branches;
    run(pass, rows, cross, out);
  }

  void prefill(const std::array<int64_t, 4>& rows, const std::array<int64_t, 5>& p,
               const std::array<int64_t, 5>& cross, const std::array<int64_t, 3>& out) {
    const PrefillRows prefill{p[0], at<int32_t>(p[1]), at<int32_t>(p[2]), at<int32_t>(p[3]), p[4]};
    Pass pass;
    pass.prefill = &prefill;
    run(pass, rows, cross, out);
  }

  int64_t decode(int64_t max_steps, const std::array<int64_t, 6>& state,
                 const std::array<int64_t, 7>& g, const std::array<int64_t, 4>& images,
                 const std::array<int64_t, 9>& s, const std::array<int64_t, 4>& t,
                 const std::array<int64_t, 4>& out) {
    const CrossRows cross = to_cross(images[0], images[1], images[2], images[3]);
    const DecodeBatch batch{
        state[1],
        {state[0], g[0], at<int32_t>(g[1]), at<int32_t>(g[2]), g[3], at<int32_t>(g[4]),
         at<int32_t>(g[5]), g[6], nullptr},
        images[0] > 0 ? &cross : nullptr,
        at<int64_t>(state[2]),
        at<int64_t>(state[3]),
        at<int32_t>(state[4]),
        at<int32_t>(state[5]),
        {at<int64_t>(s[0]), at<int64_t>(s[1]), nullptr, at<float>(s[2]), at<int32_t>(s[3]),
         at<float>(s[4]), at<float>(s[5]), nullptr, at<int64_t>(s[6]), at<bool>(s[7]),
         at<int32_t>(s[8])},
        {at<int16_t>(t[0]), at<int32_t>(t[1]), vocab_size, at<int64_t>(t[2]), t[3]},
        {at<int64_t>(out[0]), at<float>(out[1]), at<int32_t>(out[2]), at<int8_t>(out[3])}};
    const py::gil_scoped_release release;
    const std::lock_guard guard(mutex);
    return decode_loop.run(program, batch, max_steps);
  }

  StepProgram program;
  DecodeLoop decode_loop;
  int64_t vocab_size;
  std::mutex mutex;
};

}  // namespace

void bind_cpu_step(py::module_& m) {
  py::class_<GuardedProgram>(m, "StepProgram")
      .def(py::init([](int64_t hidden_size, int64_t vocab_size, int64_t num_heads,
                       int64_t num_kv_heads, int64_t head_dim, float eps, Address cos_sin,
                       int num_threads) {
             return std::make_unique<GuardedProgram>(
                 ProgramShape{hidden_size, vocab_size, num_heads, num_kv_heads, head_dim, eps,
                              at<const float>(cos_sin)},
                 num_threads > 0 ? num_threads : default_num_threads());
           }),
           "hidden_size"_a, "vocab_size"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "eps"_a,
           "cos_sin"_a, "num_threads"_a = 0)
      .def(
          "add_matrix",
          [](GuardedProgram& self, int64_t out_features, int64_t in_features,
             const std::string& format, bool is_gate_up) {
            return self.program.add_matrix(out_features, in_features,
                                           parse_weight_format(format.c_str()),
                                           is_gate_up ? RowOrder::kGateUp : RowOrder::kPlain);
          },
          "out_features"_a, "in_features"_a, "format"_a, "is_gate_up"_a = false)
      .def(
          "pack_rows",
          [](GuardedProgram& self, int64_t matrix, int64_t first_row, int64_t num_rows,
             Address source, const std::string& type, int64_t stride) {
            PackedMatrix& packed = self.program.matrix(matrix);
            const SourceType source_type = to_source_type(type);
            const py::gil_scoped_release release;
            packed.pack_rows(first_row, num_rows, at<void>(source), source_type, stride);
          },
          "matrix"_a, "first_row"_a, "num_rows"_a, "source"_a, "type"_a, "stride"_a)
      .def(
          "unpack_rows",
          [](GuardedProgram& self, int64_t matrix, int64_t first_row, int64_t num_rows,
             Address out) {
            const PackedMatrix& packed = self.program.matrix(matrix);
            packed.unpack_rows(first_row, num_rows, at<float>(out), packed.in_features());
          },
          "matrix"_a, "first_row"_a, "num_rows"_a, "out"_a)
      .def(
          "add_vector",
          [](GuardedProgram& self, Address values, int64_t count) {
            return self.program.add_vector(at<const float>(values), count);
          },
          "values"_a, "count"_a)
      .def(
          "norm_linear",
          [](GuardedProgram& self, int64_t norm, int64_t matrix, const std::string& rows) {
            self.program.add_norm_linear(norm, matrix, to_rows(rows));
          },
          "norm"_a, "matrix"_a, "rows"_a = "all")
      .def("self_attention", [](GuardedProgram& self) { self.program.add_self_attention(); })
      .def(
          "cross_attention",
          [](GuardedProgram& self, int64_t q_norm) { self.program.add_cross_attention(q_norm); },
          "q_norm"_a)
      .def(
          "residual_linear",
          [](GuardedProgram& self, int64_t matrix, bool is_from_attended, float scale,
             const std::string& rows) {
            self.program.add_residual_linear(matrix, is_from_attended, scale, to_rows(rows));
          },
          "matrix"_a, "is_from_attended"_a, "scale"_a = 1.0f, "rows"_a = "all")
      .def(
          "set_ends",
          [](GuardedProgram& self, int64_t embedding, int64_t final_norm, int64_t head) {
            self.program.set_ends(embedding, final_norm, head);
          },
          "embedding"_a, "final_norm"_a, "head"_a)
      .def(
          "bind_caches",
          [](GuardedProgram& self, const std::vector<CacheFields>& self_caches,
             const std::vector<CacheFields>& cross_caches) {
            self.program.bind_caches(to_caches(self_caches), to_caches(cross_caches));
          },
          "self_caches"_a, "cross_caches"_a)
      .def("decode", &GuardedProgram::decode, "max_steps"_a, "state"_a, "groups"_a, "images"_a,
           "sampling"_a, "tables"_a, "sampled"_a)
      .def("hidden_states", &GuardedProgram::hidden_states, "rows"_a, "branches"_a, "cross"_a,
           "outputs"_a)
      .def("prefill", &GuardedProgram::prefill, "rows"_a, "sequences"_a, "cross"_a, "outputs"_a)
      .def(
          "logits_of",
          [](GuardedProgram& self, Address hidden, int64_t num_rows, Address ids, int64_t per_row,
             Address out) {
            const py::gil_scoped_release release;
            self.program.logits_of(at<float>(hidden), num_rows, at<int64_t>(ids), per_row,
                                   at<float>(out));
          },
          "hidden"_a, "num_rows"_a, "ids"_a, "per_row"_a, "out"_a)
      .def(
          "logits",
          [](GuardedProgram& self, Address hidden, int64_t num_rows, Address out) {
            const py::gil_scoped_release release;
            const std::lock_guard guard(self.mutex);
            self.program.logits(at<float>(hidden), num_rows, at<float>(out));
          },
          "hidden"_a, "num_rows"_a, "out"_a)
      .def(
          "copy_last_logits",
          [](GuardedProgram& self, int64_t num_rows, Address out) {
            const std::lock_guard guard(self.mutex);
            self.program.copy_last_logits(num_rows, at<float>(out));
          },
          "num_rows"_a, "out"_a)
      .def_property_readonly("num_head_rows",
                             [](GuardedProgram& self) { return self.program.num_head_rows(); })
      .def_property_readonly("packed_bytes",
                             [](GuardedProgram& self) { return self.program.packed_bytes(); })
      .def(
          "decode_bytes",
          [](GuardedProgram& self, bool has_image) { return self.program.decode_bytes(has_image); },
          "has_image"_a)
      .def_property_readonly("last_kv_bytes",
                             [](GuardedProgram& self) { return self.program.last_kv_bytes(); })
      .def_property_readonly(
          "num_threads", [](GuardedProgram& self) { return self.program.pool().num_threads(); });
}

}  // namespace stagebeam::bindings
