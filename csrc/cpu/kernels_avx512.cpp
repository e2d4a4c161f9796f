// The kernels with AVX-512's registers and masks; vectors stay 8 lanes wide but where sums are
// taken.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace stagebeam::cpu {
namespace {
#define STAGEBEAM_WIDE_LANES
#include "kernel_bodies.h"
}  // namespace

const Kernels kAvx512Kernels = {
    "avx512",     rms_norm, layer_norm,  add,        dot,     silu_mul,    rotate,
    scale_padded, attend,   fold_states, store_head, largest, log_sum_exp, exp_sum,
};

}  // namespace stagebeam::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
