#include "weight_streams.h"

#include <algorithm>

#include "aligned_memory.h"

namespace stagebeam {
namespace {

#ifdef __linux__
constexpr size_t kRegionBytes = size_t{64} << 20;  // what is not touched costs no memory
#else
constexpr size_t kRegionBytes = 0;
#endif
constexpr size_t kAlignment = 64;

}  // namespace

WeightStreams::~WeightStreams() {
  for (const std::vector<Region>& regions : streams_) {
    for (const Region& region : regions) release(region.memory, region.num_bytes);
  }
}

std::byte* WeightStreams::allocate(int stream, size_t num_bytes) {
  if (num_bytes == 0) return nullptr;
  num_bytes = (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
  std::vector<Region>& regions = streams_.at(stream);
  if (regions.empty() || regions.back().num_bytes - regions.back().num_used < num_bytes) {
    const size_t size = std::max(num_bytes, kRegionBytes);
    regions.reserve(regions.size() + 1);
    regions.push_back({static_cast<std::byte*>(allocate_zeroed(size)), size, 0});
  }
  Region& region = regions.back();
  std::byte* memory = region.memory + region.num_used;
  region.num_used += num_bytes;
  return memory;
}

}  // namespace stagebeam
