// Asking for cache lines before they are needed.
#pragma once

#include <cstdint>

namespace stagebeam {

// A line to be written: another thread read it last, and a store that waits for it holds up all
// behind it.
inline void ask_to_write(const void* line) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(line)));
#else
  __builtin_prefetch(line, 1);
#endif
}

// Lines that are read once, one after the other: into the second cache. The processor's own reading
// ahead ends with a page of 4 KiB and takes some lines to begin in the next, so kPagesAtOnce pages
// are asked for side by side: lines in the order 0, 64, 128, 192, 1, 65, ... of a window.
inline constexpr int kPagesAtOnce = 4;
inline constexpr uintptr_t kPageBytes = 4096, kWindowBytes = kPagesAtOnce * kPageBytes;

// Asks for the lines of the next window whose turn is when the kLines lines from `line` on are
// read: kPagesAtOnce of them where as many lines of this window begin. Called for all lines of a
// window, it asks for all of the next.
template <int kLines>
__attribute__((always_inline)) inline void ask_for_next_window(const void* line) {
  constexpr uintptr_t kTurnBytes = kPagesAtOnce * 64;
  constexpr int kTurns = kLines / kPagesAtOnce;  // and one more in some places
  const auto from = reinterpret_cast<uintptr_t>(line);
  uintptr_t at = (from + kTurnBytes - 1) / kTurnBytes * kTurnBytes;
  for (int turn = 0; turn <= kTurns; ++turn, at += kTurnBytes) {
    if (turn == kTurns && (kLines % kPagesAtOnce == 0 || at >= from + kLines * 64)) break;
    const uintptr_t in_window = at % kWindowBytes;
    const uintptr_t next = at - in_window + kWindowBytes + in_window / kTurnBytes * 64;
    for (int page = 0; page < kPagesAtOnce; ++page) {
      __builtin_prefetch(reinterpret_cast<const char*>(next + page * kPageBytes), 0, 2);
    }
  }
}

}  // namespace stagebeam
