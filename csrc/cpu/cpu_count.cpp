#include "cpu_count.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace stagebeam {
namespace {

// The processors in this thread's affinity mask; empty where the system has no such thing.
std::vector<int> affinity() {
  std::vector<int> cpus;
#ifdef __linux__
  for (int size = 1024; size <= 1 << 17; size *= 2) {
    cpu_set_t* set = CPU_ALLOC(size);
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(size);
    const bool ok = sched_getaffinity(0, bytes, set) == 0;
    for (int cpu = 0; ok && cpu < size; ++cpu) {
      if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(cpu);
    }
    CPU_FREE(set);
    if (ok) break;
  }
#endif
  return cpus;
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

double to_number(const std::string& text) {
  std::istringstream stream(text);
  double value = 0;
  return stream >> value ? value : 0;
}

// quota / period of one control group's folder, 0 for none: version 2's cpu.max, version 1's files.
double folder_quota(const std::string& folder) {
  std::istringstream max(first_line(folder + "/cpu.max"));
  std::string quota_text;
  double period = 0;
  if (max >> quota_text >> period) {
    const double quota = to_number(quota_text);  // "max" is no number
    return quota > 0 && period > 0 ? quota / period : 0;
  }
  const double quota = to_number(first_line(folder + "/cpu.cfs_quota_us"));  // -1: none
  period = to_number(first_line(folder + "/cpu.cfs_period_us"));
  return quota > 0 && period > 0 ? quota / period : 0;
}

// The least quota from the mount point down to `path` inside it. A container may see only its own
// part of the tree under another name; folders that are not there count as no limit.
double path_quota(const std::string& mount, const std::string& path) {
  double least = folder_quota(mount);
  for (size_t end = path.find('/', 1); path.size() > 1; end = path.find('/', end + 1)) {
    const double quota = folder_quota(mount + path.substr(0, end));
    if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
    if (end == std::string::npos) break;
  }
  return least;
}

bool names_cpu(const std::string& controllers) {
  std::istringstream stream(controllers);
  for (std::string name; std::getline(stream, name, ',');) {
    if (name == "cpu") return true;
  }
  return false;
}

}  // namespace

double cgroup_cpu_quota(const std::string& root) {
  std::ifstream groups(root + "/proc/self/cgroup");
  double least = 0;
  for (std::string line; std::getline(groups, line);) {  // id:controllers:path
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    double quota = 0;
    if (controllers.empty()) {
      quota = path_quota(root + "/sys/fs/cgroup", path);
    } else if (names_cpu(controllers)) {
      quota = path_quota(root + "/sys/fs/cgroup/cpu", path);
      if (quota == 0) quota = path_quota(root + "/sys/fs/cgroup/" + controllers, path);
    }
    if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
  }
  return least;
}

int available_cpus(const std::string& root) {
  int count = static_cast<int>(affinity().size());
  if (count == 0) count = static_cast<int>(std::thread::hardware_concurrency());
  const double quota = cgroup_cpu_quota(root);
  if (quota > 0 && quota < count) count = static_cast<int>(quota);
  return std::max(count, 1);
}

int default_num_threads(const std::string& root) {
  std::set<std::string> cores;  // a core is named by the list of its threads
  for (const int cpu : affinity()) {
    const std::string siblings = first_line(root + "/sys/devices/system/cpu/cpu" +
                                            std::to_string(cpu) + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
  }
  const int available = available_cpus(root);
  return cores.empty() ? available : std::min(available, static_cast<int>(cores.size()));
}

}  // namespace stagebeam
