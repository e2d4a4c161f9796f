// The kernels on the compiler's baseline: SSE2 on x86-64, NEON on 64-bit ARM, scalar elsewhere.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"

namespace stagebeam::cpu {
namespace {
#include "kernel_bodies.h"
}  // namespace

const Kernels kGenericKernels = {
    "generic",    rms_norm, layer_norm,  add,        dot,     silu_mul,    rotate,
    scale_padded, attend,   fold_states, store_head, largest, log_sum_exp, exp_sum,
};

}  // namespace stagebeam::cpu
