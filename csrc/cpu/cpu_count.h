// How many processors this process may really use.
//
// The least of the affinity mask, the control groups' CPU quotas (version 1 and 2, every level up
// to the root) and, for the default number of threads, the physical cores in the mask. Files are
// read below `root` so that a test can lay out its own /proc and /sys.
#pragma once

#include <string>

namespace stagebeam {

// Logical processors in the affinity mask, limited by the quota (rounded down, at least 1).
int available_cpus(const std::string& root = "");

// The quota alone, in processors; 0 where there is none.
double cgroup_cpu_quota(const std::string& root = "");

// The default: one thread for each physical core among the available processors. Two threads of one
// core share its caches and multipliers, which decoding already fills.
int default_num_threads(const std::string& root = "");

}  // namespace stagebeam
