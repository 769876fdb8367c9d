// Attention on CPUs in float32 over the segments of a packed row.
//
// A tile of queries is attended to in the cache of a core: scores of all its keys, softmax, sum of
// values. Both products run in registers, kRows rows by kColumns vectors at a time. A vector of the
// first product has the scores of consecutive keys, so keys are transposed first, once for all
// queries.
//
// Nothing is added up in an order that depends on how a conversation is divided into slices, so that
// the output of a query is the same to the last bit in any batch, with any part of its conversation
// in the prefix cache.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "vector.h"

namespace {

constexpr int kRows = 6, kColumns = kLanes == 8 ? 2 : 4;  // of registers: AVX has only 16
constexpr int kBlock = 64;  // keys of a block
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// out[kRows, Columns vectors] = left[kRows, depth] * right[depth, Columns vectors]; `is_added`: +=.
template <int Columns>
inline __attribute__((always_inline)) void multiply_panel(
    const float* left, int64_t left_stride, const float* right, int64_t right_stride, float* out,
    int64_t out_stride, int64_t depth, bool is_added) {
  Vector sums[kRows][Columns];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
    for (int column = 0; column < Columns; ++column)
      sums[row][column] = is_added ? load(out + row * out_stride + column * kLanes) : Vector{};
  for (int64_t k = 0; k < depth; ++k) {
    Vector factors[Columns];
#pragma GCC unroll 8
    for (int column = 0; column < Columns; ++column)
      factors[column] = load(right + k * right_stride + column * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      const Vector factor = broadcast(left[row * left_stride + k]);
#pragma GCC unroll 8
      for (int column = 0; column < Columns; ++column)
        sums[row][column] += factor * factors[column];
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
    for (int column = 0; column < Columns; ++column)
      store(out + row * out_stride + column * kLanes, sums[row][column]);
}

// The same for any number of vectors, and of rows that is a multiple of kRows.
void multiply(const float* left, int64_t left_stride, const float* right, int64_t right_stride,
              float* out, int64_t out_stride, int64_t rows, int64_t vectors, int64_t depth,
              bool is_added) {
  for (int64_t column = 0; column < vectors; column += kColumns)
    for (int64_t row = 0; row < rows; row += kRows) {
      const auto run = [&](auto columns) {
        multiply_panel<columns.value>(left + row * left_stride, left_stride,
                                      right + column * kLanes, right_stride,
                                      out + row * out_stride + column * kLanes, out_stride, depth,
                                      is_added);
      };
      switch (std::min<int64_t>(kColumns, vectors - column)) {
        case 1: run(std::integral_constant<int, 1>()); break;
        case 2: run(std::integral_constant<int, 2>()); break;
        case 3: run(std::integral_constant<int, 3>()); break;
        default: run(std::integral_constant<int, kColumns>());
      }
    }
}

// `[tokens, heads, head_dim]`; strides in floats, of which the last is 1.
struct Heads {
  float* data;
  int64_t token_stride, head_stride;

  float* at(int64_t token, int64_t head) const {
    return data + token * token_stride + head * head_stride;
  }
};

// Consecutive queries of a segment. Their keys are slices; the last slice ends at the last query's
// key, and the query before sees all keys except the last, and so on.
struct Tile {
  int32_t start, stop;              // queries
  int32_t first_slice, stop_slice;  // indices in Attention::slices
};

struct Slice {
  int32_t start, stop;  // keys
};

struct Attention {
  Heads query, key, value, out;
  int64_t num_keys, num_heads, num_key_value_heads, head_dim;
  const Tile* tiles;
  const Slice* slices;
  // Number of tiles; largest number of queries of a tile; largest product of queries and keys.
  int64_t num_tiles, max_queries, max_scores;
  int64_t num_threads;
  float scaling;
  float* workspace;  // skyreward_get_workspace_size floats

  int64_t heads_per_key() const { return num_heads / num_key_value_heads; }
  int64_t padded_dim() const { return round_up(head_dim, kLanes); }
  int64_t num_blocks() const { return (num_keys + kBlock - 1) / kBlock; }
  int64_t block_size() const { return kBlock * padded_dim(); }
  int64_t packed_size() const { return num_key_value_heads * num_blocks() * block_size(); }
  // Values as `[kBlock, padded_dim]`, keys as `[head_dim, kBlock]`.
  float* packed_values(int64_t head, int64_t block) const {
    return workspace + (head * num_blocks() + block) * block_size();
  }
  float* packed_keys(int64_t head, int64_t block) const {
    return packed_values(head, block) + packed_size();
  }
  int64_t max_rows() const { return round_up(max_queries * heads_per_key(), kRows); }
  int64_t buffer_size() const {
    // Scores have up to two vectors more than a row has keys, and up to kRows rows of padding.
    const int64_t scores = max_scores * heads_per_key() + kRows * num_keys;
    return round_up(scores + max_rows() * (2 * padded_dim() + 2 * kLanes + 1), 16);
  }
  float* buffer(int64_t thread) const {
    return workspace + 2 * packed_size() + thread * buffer_size();
  }
};

void pack_block(const Attention& a, int64_t head, int64_t block) {
  float* keys = a.packed_keys(head, block);
  float* values = a.packed_values(head, block);
  const int64_t first = block * kBlock;
  const int64_t count = std::min<int64_t>(kBlock, a.num_keys - first);
  if (count < kBlock) std::memset(keys, 0, sizeof(float) * a.block_size());
  if (count < kBlock || a.head_dim < a.padded_dim())
    std::memset(values, 0, sizeof(float) * a.block_size());
  for (int64_t start = 0; start < a.head_dim; start += 16)
    for (int64_t token = 0; token < count; ++token) {
      const float* key = a.key.at(first + token, head);
      for (int64_t i = start; i < std::min(start + 16, a.head_dim); ++i)
        keys[i * kBlock + token] = key[i];
    }
  for (int64_t token = 0; token < count; ++token)
    std::memcpy(values + token * a.padded_dim(), a.value.at(first + token, head),
                sizeof(float) * a.head_dim);
}

// The queries of a tile for the heads that share keys and values. A row is a query of one head; the
// heads of a query are next to each other.
class TileRows {
 public:
  TileRows(const Attention& attention, const Tile& tile, int64_t key_value_head, float* buffer)
      : a(attention),
        tile(tile),
        key_value_head(key_value_head),
        count((tile.stop - tile.start) * a.heads_per_key()),
        padded_count(round_up(count, kRows)),
        num_keys(count_keys()),
        stride(round_up(num_keys, kLanes) + kLanes),
        query(buffer),
        out(query + padded_count * a.padded_dim()),
        factors(out + padded_count * a.padded_dim()),
        scores(factors + padded_count) {
    const float factor = a.scaling * 1.44269504f;  // log2(e): powers of 2 are faster than of e
    std::fill_n(query, padded_count * a.padded_dim(), 0.0f);
    for (int64_t row = 0; row < count; ++row) {
      const float* from = locate(a.query, row);
      float* to = query + row * a.padded_dim();
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] = from[i] * factor;
    }
  }

  void attend() {
    // Vectors of scores may go beyond their block; what is there is written afterwards, or masked.
    for_each_block([&](int64_t block, int64_t start, int64_t size, int64_t position) {
      multiply(query, a.padded_dim(), a.packed_keys(key_value_head, block) + start, kBlock,
               scores + position, stride, padded_count, round_up(size, kLanes) / kLanes,
               a.head_dim, false);
    });
    apply_softmax();
    for_each_block([&](int64_t block, int64_t start, int64_t size, int64_t position) {
      multiply(scores + position, stride,
               a.packed_values(key_value_head, block) + start * a.padded_dim(), a.padded_dim(),
               out, a.padded_dim(), padded_count, a.padded_dim() / kLanes, size, position > 0);
    });
    for (int64_t row = 0; row < count; ++row) {
      const float* from = out + row * a.padded_dim();
      float* to = locate(a.out, row);
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] = from[i] * factors[row];
    }
  }

 private:
  int64_t count_keys() const {
    int64_t sum = 0;
    for (int32_t index = tile.first_slice; index < tile.stop_slice; ++index)
      sum += a.slices[index].stop - a.slices[index].start;
    return sum;
  }

  // Calls `visit` with a block, the first of its keys and how many are in a slice, and the position
  // of the first key in the conversation.
  template <typename Visit>
  void for_each_block(Visit visit) const {
    int64_t position = 0;
    for (int32_t index = tile.first_slice; index < tile.stop_slice; ++index) {
      const Slice slice = a.slices[index];
      for (int64_t key = slice.start; key < slice.stop;) {
        const int64_t start = key % kBlock;
        const int64_t size = std::min<int64_t>(kBlock - start, slice.stop - key);
        visit(key / kBlock, start, size, position);
        key += size;
        position += size;
      }
    }
  }

  // Exponentiates the scores of the keys that each row sees, and writes 0 for later keys. The factors
  // make the sum of each row 1.
  void apply_softmax() {
    const int64_t repeats = a.heads_per_key();
    int64_t num_visible = num_keys - (tile.stop - tile.start);
    for (int64_t row = 0; row < count; ++row) {
      if (row % repeats == 0) ++num_visible;
      float* row_scores = scores + row * stride;
      const int64_t end = round_up(num_visible, kLanes);
      std::fill(row_scores + num_visible, row_scores + end, -kInfinity);
      Vector maxima = load(row_scores);
      for (int64_t i = kLanes; i < end; i += kLanes) maxima = max(maxima, load(row_scores + i));
      const float maximum = reduce(maxima, max);
      Vector sums = {};
      for (int64_t i = 0; i < end; i += kLanes) {
        const Vector weights = exp2(load(row_scores + i) - maximum);
        store(row_scores + i, weights);
        sums += weights;
      }
      factors[row] = 1.0f / reduce(sums, add);
      std::fill(row_scores + end, row_scores + std::max(end, num_keys), 0.0f);
    }
    std::fill(scores + count * stride, scores + padded_count * stride, 0.0f);
  }

  float* locate(const Heads& heads, int64_t row) const {
    return heads.at(tile.start + row / a.heads_per_key(),
                    key_value_head * a.heads_per_key() + row % a.heads_per_key());
  }

  const Attention& a;
  const Tile tile;
  const int64_t key_value_head, count, padded_count;  // count: rows without padding
  const int64_t num_keys, stride;                     // of the tile; floats from row to row
  float *const query, *const out;                     // `[padded_count, padded_dim]`
  float* const factors;                               // `[padded_count]`
  float* const scores;                                // `[padded_count, stride]`
};

}  // namespace

extern "C" int64_t skyreward_get_workspace_size(const Attention* attention) {
  return 2 * attention->packed_size() + attention->num_threads * attention->buffer_size();
}

extern "C" void skyreward_attend(const Attention* attention) {
  const Attention& a = *attention;
#pragma omp parallel num_threads(a.num_threads)
  {
#pragma omp for schedule(dynamic, 4)
    for (int64_t i = 0; i < a.num_key_value_heads * a.num_blocks(); ++i)
      pack_block(a, i / a.num_blocks(), i % a.num_blocks());
    float* buffer = a.buffer(omp_get_thread_num());
    // From the end: the last tiles of a conversation have most keys.
#pragma omp for schedule(dynamic)
    for (int64_t i = a.num_tiles * a.num_key_value_heads - 1; i >= 0; --i)
      TileRows(a, a.tiles[i / a.num_key_value_heads], i % a.num_key_value_heads, buffer).attend();
  }
}
