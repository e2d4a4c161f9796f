// Memory for a program's weights in the order in which its threads read them.
//
// A new stream costs the prefetchers more than a microsecond; a layer's matrices are read within
// tens. So every thread's share of a matrix lies right behind its share of the matrix before, all
// in huge pages. It knows nothing of formats. Invariant: what it gave stays where it is until it
// ends.
#pragma once

#include <cstddef>
#include <vector>

namespace stagebeam {

class WeightStreams {
 public:
  explicit WeightStreams(int num_streams) : streams_(num_streams) {}
  ~WeightStreams();
  WeightStreams(const WeightStreams&) = delete;
  WeightStreams& operator=(const WeightStreams&) = delete;

  int num_streams() const { return static_cast<int>(streams_.size()); }
  // Zeroed and 64-byte aligned; null for 0 bytes. Throws std::bad_alloc.
  std::byte* allocate(int stream, size_t num_bytes);

 private:
  struct Region {
    std::byte* memory;
    size_t num_bytes, num_used;
  };
  std::vector<std::vector<Region>> streams_;
};

}  // namespace stagebeam
