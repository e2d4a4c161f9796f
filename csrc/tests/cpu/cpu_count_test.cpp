#include "../../cpu/cpu_count.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "../check.h"

namespace stagebeam {
namespace {

// A /proc and /sys of a test's own.
class Tree {
 public:
  Tree() : root_(std::filesystem::temp_directory_path() / ("stagebeam_cpu_" + name())) {
    std::filesystem::remove_all(root_);
  }
  ~Tree() { std::filesystem::remove_all(root_); }

  Tree& write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << "\n";
    return *this;
  }
  std::string root() const { return root_.string(); }

 private:
  std::string name() const { return std::to_string(reinterpret_cast<uintptr_t>(this)); }
  std::filesystem::path root_;
};

TEST(no_quota_is_zero) {
  Tree tree;
  CHECK(cgroup_cpu_quota(tree.root()) == 0);
  tree.write("proc/self/cgroup", "0::/a").write("sys/fs/cgroup/a/cpu.max", "max 100000");
  CHECK(cgroup_cpu_quota(tree.root()) == 0);
  CHECK(available_cpus() >= 1);
  CHECK(default_num_threads() >= 1);
  CHECK(default_num_threads() <= available_cpus());
}

TEST(version_2_takes_the_least_of_all_levels) {
  Tree tree;
  tree.write("proc/self/cgroup", "0::/a/b")
      .write("sys/fs/cgroup/a/cpu.max", "150000 100000")
      .write("sys/fs/cgroup/a/b/cpu.max", "400000 100000");
  CHECK(cgroup_cpu_quota(tree.root()) == 1.5);
  CHECK(available_cpus(tree.root()) == 1);
}

TEST(version_1_and_a_container_that_sees_its_own_root) {
  Tree tree;
  tree.write("proc/self/cgroup", "3:cpuset:/x\n4:cpu,cpuacct:/docker/abc\n0::/")
      .write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000")
      .write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000");
  CHECK(cgroup_cpu_quota(tree.root()) == 0.5);
  CHECK(available_cpus(tree.root()) == 1);
  tree.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1");
  CHECK(cgroup_cpu_quota(tree.root()) == 0);
}

}  // namespace
}  // namespace stagebeam
