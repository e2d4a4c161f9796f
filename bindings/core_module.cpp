// Python bindings of csrc/core: stagebeam.bindings._core (types in _core.pyi).
//
// Python.h lives here and nowhere below. Arguments are checked and arrays turned into pointers and
// shapes; the work is csrc/core's. std::invalid_argument becomes ValueError. A pool's lock, not the
// GIL, guards it: long loops run without the GIL.
#include <pybind11/stl.h>

#include <mutex>

#include "../csrc/core/philox.h"
#include "../csrc/core/sampler.h"
#include "../csrc/core/tag_matcher.h"
#include "arguments.h"

using namespace pybind11::literals;
using namespace stagebeam;
using namespace stagebeam::bindings;

namespace {

py::array_t<int32_t> to_array(const std::vector<BlockCopy>& copies) {
  py::array_t<int32_t> pairs({static_cast<py::ssize_t>(copies.size()), py::ssize_t{2}});
  auto view = pairs.mutable_unchecked<2>();
  for (size_t i = 0; i < copies.size(); ++i) {
    view(i, 0) = copies[i].src;
    view(i, 1) = copies[i].dst;
  }
  return pairs;
}

// A pool and the lock that guards it.
struct GuardedPool {
  GuardedPool(int32_t num_blocks, int32_t block_size) : pool(num_blocks, block_size) {}

  template <typename Work>
  auto hold(Work&& work) {  // short work: keeps the GIL
    const std::lock_guard guard(mutex);
    return work(pool);
  }
  template <typename Work>
  auto run(Work&& work) {  // loops over blocks: without the GIL
    const py::gil_scoped_release release;
    return hold(work);
  }

  BlockPool pool;
  std::mutex mutex;
};

using Appended = std::optional<std::pair<py::array_t<int32_t>, py::array_t<int32_t>>>;

Appended append(GuardedPool& self, SeqId seq, int64_t n) {
  if (n < 0) fail("append: n must be at least 0, got " + std::to_string(n));
  if (n > self.pool.num_blocks() * self.pool.block_size()) return std::nullopt;
  py::array_t<int32_t> slots(n);
  std::vector<BlockCopy> copies;
  int32_t* out = slots.mutable_data();
  if (!self.hold([&](BlockPool& pool) { return pool.append(seq, n, out, copies); })) {
    return std::nullopt;
  }
  return {{slots, to_array(copies)}};
}

Appended append_one(GuardedPool& self, py::handle seqs) {
  const Ids ids = to_seqs(seqs);
  const auto count = static_cast<int64_t>(ids.size());
  py::array_t<int32_t> slots(count);
  std::vector<BlockCopy> copies;
  int32_t* out = slots.mutable_data();
  if (!self.run([&](BlockPool& pool) { return pool.append_one(ids.data(), count, out, copies); })) {
    return std::nullopt;
  }
  return {{slots, to_array(copies)}};
}

void fill_block_tables(GuardedPool& self, py::handle seqs, py::array_t<int32_t> out,
                       int64_t start_block) {
  const Ids ids = to_seqs(seqs);
  const auto count = static_cast<int64_t>(ids.size());
  if (out.ndim() != 2 || out.shape(0) != count || !out.writeable() ||
      (out.size() > 0 && out.strides(1) != sizeof(int32_t))) {
    fail("fill_block_tables: out must be a writable int32 array [" + std::to_string(count) +
         ", W] with contiguous rows, got shape " + shape_text(out));
  }
  const int64_t width = out.shape(1), stride = out.strides(0) / int64_t{sizeof(int32_t)};
  int32_t* data = out.mutable_data();
  self.run([&](BlockPool& pool) {
    pool.fill_block_tables(ids.data(), count, start_block, width, stride, data);
  });
}

py::dict stats(GuardedPool& self) {
  const PoolStats s = self.run([](BlockPool& pool) { return pool.stats(); });
  return py::dict(
      "num_blocks"_a = s.num_blocks, "num_free"_a = s.num_free, "num_reserved"_a = s.num_reserved,
      "num_used"_a = s.num_used, "num_shared"_a = s.num_shared, "num_sequences"_a = s.num_sequences,
      "num_copies"_a = s.num_copies, "peak_used"_a = s.peak_used, "num_logical"_a = s.num_logical);
}

void bind_block_pool(py::module_& m) {
  auto read = [](int64_t (BlockPool::*count)() const) {
    return [count](GuardedPool& self) {
      return self.hold([count](BlockPool& pool) { return (pool.*count)(); });
    };
  };
  py::class_<GuardedPool>(m, "BlockPool")
      .def(py::init<int32_t, int32_t>(), "num_blocks"_a, "block_size"_a)
      .def_property_readonly("num_blocks", read(&BlockPool::num_blocks))
      .def_property_readonly("block_size", read(&BlockPool::block_size))
      .def_property_readonly("num_free", read(&BlockPool::num_free))
      .def_property_readonly("num_reserved", read(&BlockPool::num_reserved))
      .def_property_readonly("num_available", read(&BlockPool::num_available))
      .def_property_readonly("num_used", read(&BlockPool::num_used))
      .def(
          "create",
          [](GuardedPool& self, int64_t reserve_tokens) {
            return self.hold([&](BlockPool& pool) { return pool.create(reserve_tokens); });
          },
          "reserve_tokens"_a = 0)
      .def(
          "fork",
          [](GuardedPool& self, SeqId seq, int32_t n, int64_t reserve_tokens) {
            return self.run([&](BlockPool& pool) { return pool.fork(seq, n, reserve_tokens); });
          },
          "seq"_a, "n"_a, "reserve_tokens"_a = 0)
      .def(
          "snapshot",
          [](GuardedPool& self, SeqId seq) {
            return self.hold([&](BlockPool& pool) { return pool.snapshot(seq); });
          },
          "seq"_a)
      .def(
          "reserve",
          [](GuardedPool& self, SeqId seq, int64_t num_tokens) {
            return self.hold([&](BlockPool& pool) { return pool.reserve(seq, num_tokens); });
          },
          "seq"_a, "num_tokens"_a)
      .def(
          "unreserve",
          [](GuardedPool& self, SeqId seq) {
            self.hold([&](BlockPool& pool) { pool.unreserve(seq); });
          },
          "seq"_a)
      .def("append", &append, "seq"_a, "n"_a)
      .def("append_one", &append_one, "seqs"_a)
      .def(
          "truncate",
          [](GuardedPool& self, SeqId seq, int64_t length) {
            self.hold([&](BlockPool& pool) { pool.truncate(seq, length); });
          },
          "seq"_a, "length"_a)
      .def(
          "release",
          [](GuardedPool& self, py::handle seqs) {
            const Ids ids = to_seqs(seqs);
            self.run([&](BlockPool& pool) { pool.release(ids); });
          },
          "seqs"_a)
      .def(
          "commit",
          [](GuardedPool& self, SeqId winner, py::handle losers) {
            const Ids ids = to_seqs(losers);
            self.run([&](BlockPool& pool) { pool.commit(winner, ids); });
          },
          "winner"_a, "losers"_a)
      .def(
          "length",
          [](GuardedPool& self, SeqId seq) {
            return self.hold([&](BlockPool& pool) { return pool.length(seq); });
          },
          "seq"_a)
      .def(
          "block_table",
          [](GuardedPool& self, SeqId seq) {
            return self.hold([&](BlockPool& pool) {
              const auto& blocks = pool.block_table(seq);
              return py::array_t<int32_t>(static_cast<py::ssize_t>(blocks.size()), blocks.data());
            });
          },
          "seq"_a)
      .def("fill_block_tables", &fill_block_tables, "seqs"_a, py::arg("out").noconvert(),
           "start_block"_a = 0)
      .def(
          "num_shared_blocks",
          [](GuardedPool& self, py::handle seqs) {
            const Ids ids = to_seqs(seqs);
            return self.run([&](BlockPool& pool) { return pool.num_shared_blocks(ids); });
          },
          "seqs"_a)
      .def("stats", &stats)
      .def("check", [](GuardedPool& self) { self.run([](BlockPool& pool) { pool.check(); }); });
}

// A read-only view of the matcher's memory that keeps the matcher alive.
template <typename T>
py::array view_of(py::object owner, std::vector<py::ssize_t> shape, const T* data) {
  py::array_t<T> view(std::move(shape), data, owner);
  view.attr("setflags")("write"_a = false);
  return view;
}

void bind_tag_matcher(py::module_& m) {
  py::class_<TagMatcher>(m, "TagMatcher")
      .def(py::init<const std::vector<std::string>&,
                    const std::vector<std::optional<std::string>>&>(),
           "tags"_a, "token_bytes"_a, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("num_states", &TagMatcher::num_states)
      .def_property_readonly("vocab_size", &TagMatcher::vocab_size)
      .def_property_readonly_static("start_state", [](py::handle) { return 0; })
      .def_property_readonly("table",
                             [](py::object self) {
                               const auto& matcher = self.cast<const TagMatcher&>();
                               return view_of(self, {matcher.num_states(), matcher.vocab_size()},
                                              matcher.table());
                             })
      .def_property_readonly("accept_tag", [](py::object self) {
        const auto& matcher = self.cast<const TagMatcher&>();
        return view_of(self, {matcher.num_states()}, matcher.accept_tag());
      });
}

py::array_t<float> uniforms(py::handle seed, py::handle step, py::handle uid,
                            py::handle token_ids) {
  const uint64_t seed_word = to_unsigned(seed, 64, "seed"), uid_word = to_unsigned(uid, 64, "uid");
  const auto step_word = static_cast<uint32_t>(to_unsigned(step, 32, "step"));
  const auto ids = to_ids<int64_t>(token_ids, "token_ids");
  py::array_t<float> out(ids.size());
  const int64_t* id = ids.data();
  float* u = out.mutable_data();
  const py::ssize_t count = ids.size();
  const py::gil_scoped_release release;
  for (py::ssize_t i = 0; i < count; ++i) {
    if (id[i] < 0 || id[i] > 0xFFFFFFFF) {
      fail("token_ids must be in 0 .. 2**32 - 1, got " + std::to_string(id[i]));
    }
    u[i] = token_uniform(seed_word, step_word, uid_word, static_cast<uint32_t>(id[i]));
  }
  return out;
}

const float* row_of(const Array<float>& logits) {
  if (logits.ndim() != 1) fail("logits must be one row, got shape " + shape_text(logits));
  return logits.data();
}

void bind_sampling(py::module_& m) {
  m.def(
      "philox4x32",
      [](py::handle key, const std::array<py::object, 4>& counter) {
        PhiloxCounter words;
        for (int i = 0; i < 4; ++i) {
          words[i] = static_cast<uint32_t>(to_unsigned(counter[i], 32, "a counter word"));
        }
        words = philox4x32(to_unsigned(key, 64, "key"), words);
        return py::make_tuple(words[0], words[1], words[2], words[3]);
      },
      "key"_a, "counter"_a);
  m.def("uniforms", &uniforms, "seed"_a, "step"_a, "uid"_a, "token_ids"_a);
  m.def(
      "kept_ids",
      [](const Array<float>& logits, double temperature, int64_t top_k, double top_p,
         double min_p) {
        const float* row = row_of(logits);
        const int64_t size = logits.size();
        std::vector<int32_t> kept;
        {
          const py::gil_scoped_release release;
          kept = kept_ids(row, size, {temperature, top_k, top_p, min_p});
        }
        return py::array_t<int32_t>(static_cast<py::ssize_t>(kept.size()), kept.data());
      },
      "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a);
  m.def(
      "sample_row",
      [](const Array<float>& logits, py::handle seed, py::handle uid, py::handle step,
         double temperature, int64_t top_k, double top_p, double min_p) {
        const float* row = row_of(logits);
        const int64_t size = logits.size();
        const uint64_t seed_word = to_unsigned(seed, 64, "seed");
        const uint64_t uid_word = to_unsigned(uid, 64, "uid");
        const auto step_word = static_cast<uint32_t>(to_unsigned(step, 32, "step"));
        SampledToken sampled;
        {
          const py::gil_scoped_release release;
          sampled = sample_row(row, size, {temperature, top_k, top_p, min_p}, seed_word, uid_word,
                               step_word);
        }
        return std::pair(sampled.token, sampled.logprob);
      },
      "logits"_a, "seed"_a, "uid"_a, "step"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core: block pool, tag matcher, counter generator and sampler.";
  bind_block_pool(m);
  bind_tag_matcher(m);
  bind_sampling(m);
}
