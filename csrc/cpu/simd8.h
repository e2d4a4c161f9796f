// Eight float lanes, the same on every instruction set: the compiler maps them to what a file's
// target has (one AVX2 register, two of SSE or NEON).
//
// Included by kernel bodies only, inside the namespace and the target region of a kernels_*.cpp.
// Invariant: a reduction over lanes always adds in the same order, so a result does not depend on
// which rows are computed together.

using Lanes = float __attribute__((vector_size(32)));
typedef float LanesAt  // clang does not see `aligned` in an alias-declaration
    __attribute__((vector_size(32), aligned(4), may_alias));
using Ints = int32_t __attribute__((vector_size(32)));
using Words = uint32_t __attribute__((vector_size(32)));

constexpr int64_t kLanes = 8;

// Two of them side by side where a file's registers hold as many.
#if defined(STAGEBEAM_WIDE_LANES)
using WideLanes = float __attribute__((vector_size(64)));
typedef float WideLanesAt __attribute__((vector_size(64), aligned(4), may_alias));
#else
using WideLanes = Lanes;
using WideLanesAt = LanesAt;
#endif

#define STAGEBEAM_INLINE inline __attribute__((always_inline))

STAGEBEAM_INLINE Lanes load(const float* p) {
  return *reinterpret_cast<const LanesAt*>(p);
}
STAGEBEAM_INLINE WideLanes load_wide(const float* p) {
  return *reinterpret_cast<const WideLanesAt*>(p);
}
STAGEBEAM_INLINE void store(float* p, Lanes x) {
  *reinterpret_cast<LanesAt*>(p) = x;
}
STAGEBEAM_INLINE Lanes splat(float x) {
  return Lanes{} + x;
}

STAGEBEAM_INLINE Lanes load(const Bfloat16* p) {
  using Halves = uint16_t __attribute__((vector_size(16)));
  Halves bits;
  std::memcpy(&bits, p, sizeof bits);
  return (Lanes)(__builtin_convertvector(bits, Words) << 16);
}
STAGEBEAM_INLINE Lanes load(const int8_t* p) {
  using Bytes = int8_t __attribute__((vector_size(8)));
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Lanes);
}
STAGEBEAM_INLINE Lanes load(const Float16* p) {
  Lanes out{};
  for (int64_t i = 0; i < kLanes; ++i) out[i] = to_float(p[i]);
  return out;
}

// The first `count` < 8 elements, then zeros; nothing past them is read.
template <typename Element>
STAGEBEAM_INLINE Lanes load_partial(const Element* p, int64_t count) {
  Lanes out{};
  for (int64_t i = 0; i < count; ++i) out[i] = to_float(p[i]);
  return out;
}
STAGEBEAM_INLINE void store_partial(float* p, Lanes x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = x[i];
}

template <typename Mask, typename Vector>
STAGEBEAM_INLINE Vector select(Mask mask, Vector yes, Vector no) {
  return mask ? yes : no;
}
STAGEBEAM_INLINE Lanes larger(Lanes a, Lanes b) {
  return select(a > b, a, b);
}

// Lane i + lane i + 4, then + 2, then + 1.
STAGEBEAM_INLINE float sum_lanes(Lanes x) {
  const float a = x[0] + x[4], b = x[1] + x[5], c = x[2] + x[6], d = x[3] + x[7];
  return (a + c) + (b + d);
}
STAGEBEAM_INLINE float max_lanes(Lanes x) {
  float top = x[0];
  for (int64_t i = 1; i < kLanes; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// Lane i of the result is the sum of x[i]'s lanes, in one order for all i.
STAGEBEAM_INLINE Lanes sum_each(const Lanes x[8]) {
  Lanes fours[4];
  for (int i = 0; i < 4; ++i) {
    fours[i] = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
               __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  Lanes twos[2];
  for (int i = 0; i < 2; ++i) {
    twos[i] = __builtin_shufflevector(fours[i], fours[i + 2], 0, 1, 8, 9, 4, 5, 12, 13) +
              __builtin_shufflevector(fours[i], fours[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  return __builtin_shufflevector(twos[0], twos[1], 0, 8, 2, 10, 4, 12, 6, 14) +
         __builtin_shufflevector(twos[0], twos[1], 1, 9, 3, 11, 5, 13, 7, 15);
}

// e^x within 2 units in the last place; 0 below -87, finite at most: x is at most 88 in its uses.
template <typename Vector>
STAGEBEAM_INLINE Vector exponential(Vector x) {
  using Mask = decltype(x < x);
  const Mask is_zero = x < -87.0f;
  x = select(x > 88.0f, Vector{} + 88.0f, x);
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector whole = (x * 1.44269504f + shift) - shift;
  const Vector r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Mask exponent = (__builtin_convertvector(whole, Mask) + 127) << 23;
  return select(is_zero, Vector{}, p * (Vector)exponent);
}
