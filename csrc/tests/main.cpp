// Runs every registered test; the exit status is 1 if a check failed.
#include "check.h"

int main() {
  using namespace stagebeam::testing;
  for (const Test& test : tests()) {
    const int before = num_failures();
    test.run();
    std::printf("%s %s\n", num_failures() == before ? "ok  " : "FAIL", test.name);
  }
  std::printf("%zu tests, %d failed checks\n", tests().size(), num_failures());
  return num_failures() == 0 ? 0 : 1;
}
