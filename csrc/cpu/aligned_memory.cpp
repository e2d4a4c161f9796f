#include "aligned_memory.h"

#include <cstdint>
#include <cstring>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace stagebeam {
namespace {

constexpr size_t kAlignment = 64;
#ifdef __linux__
constexpr size_t kHugePage = size_t{1} << 21;
constexpr size_t kPage = 4096;

bool is_mapped(size_t num_bytes) {
  return num_bytes >= kHugePage;
}
size_t whole_pages(size_t num_bytes) {
  return (num_bytes + kPage - 1) / kPage * kPage;
}

// A mapping that starts on a huge page; what is mapped too much before and after goes back.
void* map(size_t num_bytes) {
  const size_t wanted = whole_pages(num_bytes);
  void* memory =
      mmap(nullptr, wanted + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned > start) munmap(memory, aligned - start);
  const size_t after = start + kHugePage - aligned;
  if (after > 0) munmap(reinterpret_cast<void*>(aligned + wanted), after);
  madvise(reinterpret_cast<void*>(aligned), wanted, MADV_HUGEPAGE);
  return reinterpret_cast<void*>(aligned);
}
#endif

}  // namespace

void* allocate_zeroed(size_t num_bytes) {
  if (num_bytes == 0) return nullptr;
#ifdef __linux__
  if (is_mapped(num_bytes)) return map(num_bytes);
#endif
  void* memory = ::operator new(num_bytes, std::align_val_t{kAlignment});
  std::memset(memory, 0, num_bytes);
  return memory;
}

void release(void* memory, size_t num_bytes) noexcept {
  if (memory == nullptr) return;
#ifdef __linux__
  if (is_mapped(num_bytes)) {
    munmap(memory, whole_pages(num_bytes));
    return;
  }
#endif
  static_cast<void>(num_bytes);
  ::operator delete(memory, std::align_val_t{kAlignment});
}

}  // namespace stagebeam
