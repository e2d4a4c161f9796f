// Which SIMD instruction set this process uses: chosen once at run time, never at build time.
//
// Every instruction set is compiled into its own translation units (`*_avx2.cpp`, ...); callers ask
// `active_isa()` and take that table of kernels. Invariant: an instruction set that the processor
// or the operating system does not support is never active.
#pragma once

#include <string>
#include <vector>

namespace stagebeam {

enum class Isa {
  kScalar,  // plain C++: anywhere
  kNeon,    // AArch64
  kAvx2,    // AVX2 + FMA + F16C
  kAvx512,  // AVX-512 F + BW + DQ + VL, with AVX2 + FMA + F16C
  kAmx,     // AVX-512 with VNNI and bf16, and AMX's tiles of both
};

const char* isa_name(Isa isa);  // "scalar", "neon", "avx2", "avx512", "amx"

// What this machine can run, slowest first; never empty.
std::vector<Isa> available_isas();

// Whether 8-bit dot products of AVX-512 (VNNI) may be used; only ever true from kAvx512 on.
bool has_avx512_vnni();
// The same with shifts within bytes (GFNI).
bool has_gfni();
// Whether AVX-512's bfloat16 dot products may be used; only ever true from kAvx512 on.
bool has_avx512_bf16();

// The best available one, or the one that the environment variable STAGEBEAM_ISA names.
// Throws std::invalid_argument where that is unknown or not available here.
Isa active_isa();

// Replaces the active one, for tests; not during a parallel region. Throws as above.
void set_active_isa(Isa isa);
Isa parse_isa(const std::string& name);

}  // namespace stagebeam
