// FlashAttention-2 (Dao, 2023) on CPUs, in float32, over the segments of a packed row.
//
// Both products run in registers, kRows rows by kColumns vectors at a time. A vector of the first
// product has the scores of consecutive keys, so keys are transposed first, once for all queries.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

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
      const auto run = [&](auto multiply_columns) {
        multiply_columns(left + row * left_stride, left_stride, right + column * kLanes,
                         right_stride, out + row * out_stride + column * kLanes, out_stride, depth,
                         is_added);
      };
      switch (std::min<int64_t>(kColumns, vectors - column)) {
        case 1: run(multiply_panel<1>); break;
        case 2: run(multiply_panel<2>); break;
        case 3: run(multiply_panel<3>); break;
        default: run(multiply_panel<kColumns>);
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
  int64_t num_tiles, max_tile;  // number of tiles; largest number of queries of a tile
  int64_t num_threads;
  float scaling;
  float* workspace;  // skyreward_get_workspace_size floats

  int64_t heads_per_key() const { return num_heads / num_key_value_heads; }
  int64_t padded_dim() const { return round_up(head_dim, kLanes); }
  int64_t num_blocks() const { return (num_keys + kBlock - 1) / kBlock; }
  int64_t max_rows() const { return round_up(max_tile * heads_per_key(), kRows); }
  int64_t block_size() const { return kBlock * padded_dim(); }
  int64_t packed_size() const { return num_key_value_heads * num_blocks() * block_size(); }
  // Keys as `[head_dim, kBlock]`, values as `[kBlock, padded_dim]`.
  float* packed_keys(int64_t head, int64_t block) const {
    return workspace + (head * num_blocks() + block) * block_size();
  }
  float* packed_values(int64_t head, int64_t block) const {
    return packed_keys(head, block) + packed_size();
  }
  int64_t buffer_size() const { return round_up(max_rows() * (2 * padded_dim() + kBlock + kLanes + 1), 16); }
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

// The rows of a tile on their way through the keys. A row is a query of one head; heads that share
// keys and values are next to each other.
class TileRows {
 public:
  TileRows(const Attention& attention, const Tile& tile, int64_t key_value_head, float* buffer)
      : a(attention),
        tile(tile),
        key_value_head(key_value_head),
        count((tile.stop - tile.start) * a.heads_per_key()),
        padded_count(round_up(count, kRows)),
        query(buffer),
        out(query + padded_count * a.padded_dim()),
        scores(out + padded_count * a.padded_dim()),
        sums(scores + padded_count * kBlock),
        maxima(sums + padded_count * kLanes) {
    const float factor = a.scaling * 1.44269504f;  // log2(e): powers of 2 are faster than of e
    std::fill_n(query, 2 * padded_count * a.padded_dim(), 0.0f);
    std::fill_n(maxima, padded_count, -kInfinity);
    std::fill_n(sums, padded_count * kLanes, 0.0f);
    for (int64_t row = 0; row < count; ++row) {
      const float* from = locate(a.query, row);
      float* to = query + row * a.padded_dim();
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] = from[i] * factor;
    }
  }

  void attend() {
    for (int32_t index = tile.first_slice; index < tile.stop_slice; ++index) {
      const Slice slice = a.slices[index];
      const bool causal = index == tile.stop_slice - 1;
      for (int64_t block = slice.start / kBlock; block * kBlock < slice.stop; ++block) {
        const int64_t base = block * kBlock;
        attend_to_block(block, std::max<int64_t>(slice.start - base, 0), slice.stop - base, causal);
      }
    }
    for (int64_t row = 0; row < count; ++row) {
      const float* from = out + row * a.padded_dim();
      float* to = locate(a.out, row);
      const float sum = reduce(load(sums + row * kLanes), add);
      for (int64_t i = 0; i < a.head_dim; ++i) to[i] = from[i] / sum;
    }
  }

 private:
  // The keys of the block from `start` on; `stop`, the end of the slice, may be beyond the block.
  void attend_to_block(int64_t block, int64_t start, int64_t stop, bool causal) {
    const int64_t last = std::min<int64_t>(stop, kBlock);
    const int64_t aligned = start / kLanes * kLanes;
    const int64_t vectors = round_up(last - aligned, kLanes) / kLanes;
    multiply(query, a.padded_dim(), a.packed_keys(key_value_head, block) + aligned, kBlock,
             scores + aligned, kBlock, padded_count, vectors, a.head_dim, false);
    int64_t num_later = tile.stop - tile.start - 1;
    for (int64_t row = 0; row < count; --num_later) {
      const int64_t visible = causal ? std::clamp<int64_t>(stop - num_later, start, last) : last;
      for (int64_t head = 0; head < a.heads_per_key(); ++head, ++row)
        update_softmax(row, scores + row * kBlock + aligned, vectors, start - aligned,
                       visible - aligned);
    }
    multiply(scores + start, kBlock,
             a.packed_values(key_value_head, block) + start * a.padded_dim(), a.padded_dim(), out,
             a.padded_dim(), padded_count, a.padded_dim() / kLanes, last - start, true);
  }

  // Exponentiates the scores of a row, relative to the maximum so far, and scales its output to it.
  // Scores before `start` and from `stop` on are hidden.
  void update_softmax(int64_t row, float* row_scores, int64_t vectors, int32_t start,
                      int32_t stop) {
    if (start > 0 || stop < vectors * kLanes)
      for (int64_t i = 0; i < vectors; ++i) {
        const Integers index = get_lane_indices() + static_cast<int32_t>(i * kLanes);
        float* to = row_scores + i * kLanes;
        store(to, (index >= start) & (index < stop) ? load(to) : broadcast(-kInfinity));
      }
    Vector maximum = load(row_scores);
    for (int64_t i = 1; i < vectors; ++i) maximum = max(maximum, load(row_scores + i * kLanes));
    const float before = maxima[row];
    const float after = std::max(before, reduce(maximum, max));
    if (after == -kInfinity) {  // the row sees no key of these blocks, nor of any before
      std::fill_n(row_scores, vectors * kLanes, 0.0f);
      return;
    }
    Vector total = {};
    for (int64_t i = 0; i < vectors; ++i) {
      const Vector weight = exp2(load(row_scores + i * kLanes) - after);
      store(row_scores + i * kLanes, weight);
      total += weight;
    }
    maxima[row] = after;
    const Vector factor = exp2(broadcast(before - after));
    store(sums + row * kLanes, load(sums + row * kLanes) * factor + total);
    float* to = out + row * a.padded_dim();
    for (int64_t i = 0; i < a.padded_dim(); i += kLanes) store(to + i, load(to + i) * factor);
  }

  float* locate(const Heads& heads, int64_t row) const {
    return heads.at(tile.start + row / a.heads_per_key(),
                    key_value_head * a.heads_per_key() + row % a.heads_per_key());
  }

  const Attention& a;
  const Tile tile;
  const int64_t key_value_head, count, padded_count;  // count: rows without padding
  float *const query, *const out;                     // `[padded_count, padded_dim]`
  float* const scores;                                // `[padded_count, kBlock]`
  float* const sums;                                  // `[padded_count, kLanes]`, of the weights
  float* const maxima;                                // `[padded_count]`, of the scores
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
