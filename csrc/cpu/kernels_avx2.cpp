// The kernels with AVX2, FMA and F16C.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace stagebeam::cpu {
namespace {
#include "kernel_bodies.h"
}  // namespace

const Kernels kAvx2Kernels = {
    "avx2",       rms_norm, layer_norm,  add,        dot,     silu_mul,    rotate,
    scale_padded, attend,   fold_states, store_head, largest, log_sum_exp, exp_sum,
};

}  // namespace stagebeam::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
