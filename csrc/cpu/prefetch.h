// Asking for a cache line to write it: another thread read it last, and a store that waits for it
// holds up all behind it.
#pragma once

namespace stagebeam {

inline void ask_to_write(const void* line) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(line)));
#else
  __builtin_prefetch(line, 1);
#endif
}

}  // namespace stagebeam
