// Vectors of floats of the machine's size, through the vector extensions of GCC.

#pragma once

#include <cstdint>
#include <initializer_list>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector vector) { *reinterpret_cast<Vector*>(to) = vector; }
inline Vector broadcast(float value) { return value - Vector{}; }
inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

inline Integers get_lane_indices() {
  Integers indices;
  for (int lane = 0; lane < kLanes; ++lane) indices[lane] = lane;
  return indices;
}

// Combines all lanes: after each step, a lane holds what the lane `distance` away held too.
template <typename Combine>
inline float reduce(Vector vector, Combine combine) {
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    vector = combine(vector, __builtin_shuffle(vector, get_lane_indices() ^ distance));
  return vector[0];
}

inline Vector max(Vector left, Vector right) { return left > right ? left : right; }
inline Vector add(Vector left, Vector right) { return left + right; }

// 2 to the power of x <= 0 with a relative error below 2e-7; 0 below -126, and NaN for NaN.
inline Vector exp2(Vector x) {
  x = x < -126.0f ? broadcast(-127.0f) : x;
  // The sum has no bits left for a fraction; its lowest bits are the integer nearest to x.
  const Vector rounded = x + 0x1.8p23f;
  const Vector fraction = x - (rounded - 0x1.8p23f);
  // Taylor series of exp(fraction * log(2)).
  Vector series = broadcast(1.5252734e-5f);
  for (float coefficient : {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f,
                            2.4022651e-1f, 6.9314718e-1f, 1.0f})
    series = series * fraction + coefficient;
  // 0x4B400000 are the bits of 1.5 * 2^23, 127 is the bias of the exponent.
  const Integers power = (reinterpret_cast<const Integers&>(rounded) - 0x4B400000 + 127) << 23;
  return series * reinterpret_cast<const Vector&>(power);
}

}  // namespace
