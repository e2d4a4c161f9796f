// The test program's own macros: TEST registers a function, CHECK and CHECK_THROWS count failures.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <vector>

namespace stagebeam::testing {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& num_failures() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline void report(bool ok, const char* file, int line, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what);
  ++num_failures();
}

}  // namespace stagebeam::testing

#define TEST(name)                                                                 \
  static void name();                                                              \
  static const stagebeam::testing::Registration name##_registration(#name, &name); \
  static void name()

#define CHECK(condition) stagebeam::testing::report((condition), __FILE__, __LINE__, #condition)

#define CHECK_THROWS(statement)                                                        \
  do {                                                                                 \
    bool has_thrown = false;                                                           \
    try {                                                                              \
      statement;                                                                       \
    } catch (const std::invalid_argument&) {                                           \
      has_thrown = true;                                                               \
    }                                                                                  \
    stagebeam::testing::report(has_thrown, __FILE__, __LINE__, "throws: " #statement); \
  } while (false)
