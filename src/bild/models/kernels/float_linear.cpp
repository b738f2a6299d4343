// A linear layer on weights and tokens in bfloat16 or float32, for a few rows, by AMX, AVX512 or AVX2.
//
// bild::float_linear(states, weight, bias?) multiplies and sums in float32. Weights are packed by floats.py:
// [outputs / 32][inputs / 2][32][2] in bfloat16, whose pairs AVX512_BF16 multiplies in one, [outputs / 32][inputs][32] in
// float32: 128 bytes a step either way. Outputs are shared out among threads in units of 32.

#include "tiles.h"

#ifdef __AVX512F__
#include "amx.h"
#endif

namespace bild {
namespace {

constexpr int64_t STEP = 4;  // bytes of a token that are multiplied at once

struct Product {
  const char* weight;
  const void* bias;  // or null
  const char* rows;
  void* result;
  int64_t count, steps, outputs;
  bool half;  // bfloat16, else float32
};

inline void finish(const Product& p, int64_t row, int64_t output, Floats value) {
  const int64_t left = p.outputs - output;
  if (left <= 0) return;
  if (p.bias) value = value + read(p.bias, output, p.half, left);
  write(p.result, row * p.outputs + output, p.half, value, left);
}

template <bool HALF>
struct Tile {
  static constexpr int MOST_ROWS = REGISTERS == 32 ? 12 : 3, FOUR_VECTORS = REGISTERS == 32 ? 6 : 1;

  template <int ROWS, int UNITS>
  static void block(const Product& p, int64_t row, int64_t unit) {
    const int64_t next = p.steps * 2 * VECTOR;
    const char* weight = p.weight + unit * next;
    const char* rows = p.rows + row * p.steps * STEP;
    Floats sums[ROWS][2 * UNITS];
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
      for (int n = 0; n < 2 * UNITS; n++) sums[m][n] = same(0.0f);
    for (int64_t k = 0; k < p.steps; k++) {
      Bytes weights[2 * UNITS];
#pragma GCC unroll 4
      for (int n = 0; n < 2 * UNITS; n++) {
        const char* at = weight + (n / 2) * next + k * 2 * VECTOR + (n % 2) * VECTOR;
        weights[n] = load_bytes(at);
        _mm_prefetch(at + AHEAD, _MM_HINT_T0);
      }
#pragma GCC unroll 12
      for (int m = 0; m < ROWS; m++) {
        const char* token = rows + (m * p.steps + k) * STEP;
        if constexpr (HALF) {
          int32_t pair;
          std::memcpy(&pair, token, sizeof pair);
#pragma GCC unroll 4
          for (int n = 0; n < 2 * UNITS; n++) sums[m][n] = add_pairs(sums[m][n], weights[n], whole(pair));
        } else {
          float number;
          std::memcpy(&number, token, sizeof number);
#pragma GCC unroll 4
          for (int n = 0; n < 2 * UNITS; n++) sums[m][n] = multiply_add(as_floats(weights[n]), same(number), sums[m][n]);
        }
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
      for (int n = 0; n < 2 * UNITS; n++) finish(p, row + m, unit * UNIT + n * 16, sums[m][n]);
  }

#ifdef __AVX512F__
  //   rows: of a tile.
  template <int TILES, int UNITS>
  static void tiles(const Product& p, int64_t row, int64_t rows, int64_t unit) {
    Sums<TILES, UNITS> sums;
    const int64_t bytes = p.steps * STEP, next = bytes * UNIT;
    sums.template fill<OfHalves>(p.rows + row * bytes, rows, bytes, bytes, p.weight + unit * next, next, row == 0);
    for (int64_t m = 0; m < std::min(TILES * rows, p.count - row); m++)
      for (int n = 0; n < 2 * UNITS; n++)
        finish(p, row + m, unit * UNIT + n * 16, _mm512_castsi512_ps(_mm512_load_si512(sums.bits[m][n])));
  }
#endif
};

// The rows one behind the other, copied where they do not lie so.
//   spare: how many more rows may be read behind them.
const char* dense_rows(AtenTensorHandle states, const Sizes& sizes, const Product& p, int64_t spare) {
  const char* from = data<const char>(states);
  const int64_t bytes = p.steps * STEP, width = p.half ? 2 : 4;
  bool even = spare == 0;
  for (int64_t m = 0; m < p.count && even; m++) even = sizes.offset(m) * width == m * bytes;
  if (even) return from;
  static thread_local std::vector<char> copied;
  copied.resize((p.count + spare) * bytes);
  for (int64_t m = 0; m < p.count; m++) std::memcpy(&copied[m * bytes], from + sizes.offset(m) * width, bytes);
  return copied.data();
}

AtenTensorHandle float_linear(AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle bias, int64_t outputs,
                              int64_t threads) {
  const Sizes sizes(states);
  Product p{};
  p.half = is(states, aoti_torch_dtype_bfloat16());
  const int32_t dtype = p.half ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32();
  require(is(states, dtype) && is(weight, dtype) && sizes.dims >= 1,
          "float_linear takes states [..., inputs] and a weight in bfloat16 or float32, both alike");
  const int64_t inputs = sizes.sizes[sizes.dims - 1];
  p.steps = inputs * (p.half ? 2 : 4) / STEP;
  p.outputs = outputs;
  require((!p.half || inputs % 2 == 0) && dense(weight) && count(weight) == units_of(outputs) * UNIT * inputs,
          "float_linear: states and outputs do not fit the weight");
  require(!bias || (is(bias, dtype) && dense(bias) && count(bias) == outputs),
          "float_linear takes a bias of the states' type, one number an output");
  require(inputs == 0 || sizes.strides[sizes.dims - 1] == 1, "float_linear: the last dimension must be dense");
  p.count = rows_of(sizes);
  AtenTensorHandle result = empty(sizes, outputs, dtype);
  if (p.count == 0) return result;
  p.weight = data<const char>(weight);
  p.bias = bias ? data<const void>(bias) : nullptr;
  p.result = data<void>(result);
  const int64_t bytes = p.steps * 2 * VECTOR;
#ifdef __AVX512F__
  if (p.half && fits_tiles(p.count, p.steps * STEP)) {
    p.rows = dense_rows(states, sizes, p, Cut(p.count).spare);
    multiply_all_tiled<Tile<true>>(p, bytes, threads);
    return result;
  }
#endif
  p.rows = dense_rows(states, sizes, p, 0);
  if (p.half)
    multiply_all<Tile<true>>(p, bytes, threads);
  else
    multiply_all<Tile<false>>(p, bytes, threads);
  return result;
}

}  // namespace
}  // namespace bild

BILD_LINEAR_OPERATOR(float_linear)
