// Everything in a table of kernels, for one instruction set: a kernels_*.cpp includes this inside a
// target region, after the standard headers, and in a namespace of its own.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only
#endif
#include "simd8.h"
//
#include "attention_kernels.h"
#include "elementwise_kernels.h"
