// Parts of decoder layers that read and write each number once, where torch's operations one by one
// do it several times.

#include <cmath>

#include "vector.h"

// out = weight * (x / sqrt(mean(x^2) + epsilon)) for rows `[num_rows, size]`.
extern "C" void skyreward_rms_norm(const float* rows, const float* weight, float* out,
                                   int64_t num_rows, int64_t size, float epsilon,
                                   int64_t num_threads) {
  const int64_t end = size / kLanes * kLanes;
#pragma omp parallel for num_threads(num_threads)
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* from = rows + row * size;
    float* to = out + row * size;
    Vector squares = {};
    for (int64_t i = 0; i < end; i += kLanes) squares += load(from + i) * load(from + i);
    float sum = reduce(squares, add);
    for (int64_t i = end; i < size; ++i) sum += from[i] * from[i];
    const float scale = 1.0f / std::sqrt(sum / size + epsilon);
    for (int64_t i = 0; i < end; i += kLanes)
      store(to + i, load(weight + i) * (load(from + i) * scale));
    for (int64_t i = end; i < size; ++i) to[i] = weight[i] * (from[i] * scale);
  }
}

namespace {

Vector silu(Vector x) {
  // exp(-|x|), which cannot overflow.
  const Vector power = exp2((x < 0.0f ? x : -x) * 1.44269504f);
  return x * ((x < 0.0f ? power : broadcast(1.0f)) / (1.0f + power));
}

}  // namespace

// gate = silu(gate) * up, in place.
extern "C" void skyreward_silu_multiply(float* gate, const float* up, int64_t size,
                                        int64_t num_threads) {
  const int64_t end = size / kLanes * kLanes;
#pragma omp parallel for num_threads(num_threads)
  for (int64_t i = 0; i < end; i += kLanes) store(gate + i, silu(load(gate + i)) * load(up + i));
  for (int64_t i = end; i < size; ++i) gate[i] = silu(broadcast(gate[i]))[0] * up[i];
}

// Rotary position embedding of `[num_tokens, num_heads, size]`, out with the same strides:
// out = x * cos + (-x of the second half, x of the first half) * sin; cos and sin are `[num_tokens, size]`.
extern "C" void skyreward_rotate(const float* rows, float* out, const float* cos, const float* sin,
                                 int64_t num_tokens, int64_t num_heads, int64_t size,
                                 int64_t token_stride, int64_t head_stride, int64_t num_threads) {
  const int64_t half = size / 2;
#pragma omp parallel for num_threads(num_threads)
  for (int64_t token = 0; token < num_tokens; ++token) {
    const float *token_cos = cos + token * size, *token_sin = sin + token * size;
    for (int64_t head = 0; head < num_heads; ++head) {
      const float* from = rows + token * token_stride + head * head_stride;
      float* to = out + token * token_stride + head * head_stride;
#pragma GCC ivdep
      for (int64_t i = 0; i < half; ++i) {
        to[i] = from[i] * token_cos[i] - from[i + half] * token_sin[i];
        to[i + half] = from[i + half] * token_cos[i + half] + from[i] * token_sin[i + half];
      }
    }
  }
}
