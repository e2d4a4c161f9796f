#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace stagebeam {
namespace {

constexpr int kUnset = -1;
std::atomic<int> active{kUnset};

std::string available_names() {
  std::string names;
  for (const Isa isa : available_isas())
    names += std::string(names.empty() ? "" : ", ") + isa_name(isa);
  return names;
}

void check_available(Isa isa) {
  const auto here = available_isas();
  if (std::find(here.begin(), here.end(), isa) != here.end()) return;
  throw std::invalid_argument(
      "instruction set \"" + std::string(isa_name(isa)) +
      "\" is not available on this machine; available: " + available_names());
}

#if defined(__x86_64__)
// Whether this process may use AMX: Linux keeps the tiles' registers only for those that ask.
bool asks_for_amx() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h
  static const bool is_allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return is_allowed;
#else
  return false;
#endif
}

bool has_amx() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") &&
         __builtin_cpu_supports("amx-bf16") && asks_for_amx();
}
#endif

Isa choose() {
  const char* name = std::getenv("STAGEBEAM_ISA");
  if (name == nullptr || *name == '\0') return available_isas().back();
  const Isa isa = parse_isa(name);
  check_available(isa);
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kNeon:
      return "neon";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAmx:
      return "amx";
    case Isa::kScalar:
      break;
  }
  return "scalar";
}

Isa parse_isa(const std::string& name) {
  for (const Isa isa : {Isa::kScalar, Isa::kNeon, Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (name == isa_name(isa)) return isa;
  }
  throw std::invalid_argument("unknown instruction set \"" + name +
                              "\"; available here: " + available_names());
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas{Isa::kScalar};
#if defined(__aarch64__)
  isas.push_back(Isa::kNeon);
#elif defined(__x86_64__)
  // These ask the processor, and the operating system for the registers' state.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    isas.push_back(Isa::kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      isas.push_back(Isa::kAvx512);
      if (has_amx()) isas.push_back(Isa::kAmx);
    }
  }
#endif
  return isas;
}

bool has_avx512_vnni() {
#if defined(__x86_64__)
  return available_isas().back() >= Isa::kAvx512 && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool has_gfni() {
#if defined(__x86_64__)
  return has_avx512_vnni() && __builtin_cpu_supports("gfni");
#else
  return false;
#endif
}

bool has_avx512_bf16() {
#if defined(__x86_64__)
  return available_isas().back() >= Isa::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Isa active_isa() {
  int value = active.load(std::memory_order_relaxed);
  if (value == kUnset) {
    value = static_cast<int>(choose());
    active.store(value, std::memory_order_relaxed);
  }
  return static_cast<Isa>(value);
}

void set_active_isa(Isa isa) {
  check_available(isa);
  active.store(static_cast<int>(isa), std::memory_order_relaxed);
}

}  // namespace stagebeam
