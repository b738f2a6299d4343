// A linear layer on int8 weights and int8 tokens, for a few rows, by AVX512-VNNI or AVX2.
//
// bild::int8_linear(states, weight, scale, bias?) rounds the pieces of every row of the states to int8 (rounding.h),
// multiplies, exactly in int32 within a piece, and scales back. Weights are packed by int8.py:
// [outputs / 32][inputs / 4][32][4]; for AVX512 unsigned (128 added), which sums of the rounded rows take out again.
// Outputs are shared out among threads in units of 32.

#include "rounding.h"

namespace bild {
namespace {

struct Product : Rounded {
  const float* scale;
};

struct Tile {
  static constexpr int MOST_ROWS = REGISTERS == 32 ? 12 : 2, FOUR_VECTORS = REGISTERS == 32 ? 6 : 1;

  template <int ROWS, int UNITS>
  static void block(const Product& p, int64_t row, int64_t unit) {
    const uint8_t* weight = p.weight + unit * p.inputs * UNIT;
    alignas(64) float values[ROWS][2 * UNITS][16] = {};
    for (int64_t piece = 0, left = p.inputs; left > 0; piece++, left -= PIECE) {
      add_piece(p, piece * p.count + row, std::min(PIECE, left), weight, values);
      weight += PIECE * UNIT;
    }
    for (int m = 0; m < ROWS; m++)
      for (int n = 0; n < 2 * UNITS; n++) {
        const int64_t output = unit * UNIT + n * 16;
        put(p, row + m, output, load(values[m][n]) * load(p.scale + output));
      }
  }

  // What the inputs of one piece add to the values. A function of its own, whose sums are said to be in registers at its
  // ends: gcc 12 keeps those of many rows in memory otherwise, and moves them in and out at every step.
  //   at: of the first row, among all pieces of all rows.
  template <int ROWS, int VECTORS>
  static __attribute__((noinline)) void add_piece(const Product& p, int64_t at, int64_t inputs, const uint8_t* weight,
                                                  float (&values)[ROWS][VECTORS][16]) {
    const float *steps = p.steps + at, *token_sums = p.sums + at;
    const int64_t next = p.inputs * UNIT;
    Whole sums[ROWS][VECTORS];
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
      for (int n = 0; n < VECTORS; n++) {
        sums[m][n] = first_sums(static_cast<int32_t>(token_sums[m]));
        in_register(sums[m][n]);
      }
    const int8_t* rows = p.rows + at * PIECE;
    for (const int8_t* end = rows + inputs; rows < end; rows += 4, weight += 2 * VECTOR) {
      Bytes four[VECTORS];
#pragma GCC unroll 4
      for (int n = 0; n < VECTORS; n++) {
        const uint8_t* from = weight + (n / 2) * next + (n % 2) * VECTOR;
        four[n] = load_bytes(from);
        _mm_prefetch(reinterpret_cast<const char*>(from + AHEAD), _MM_HINT_T0);
      }
#pragma GCC unroll 12
      for (int m = 0; m < ROWS; m++) {
        int32_t tokens;
        std::memcpy(&tokens, rows + m * PIECE, sizeof tokens);
#pragma GCC unroll 4
        for (int n = 0; n < VECTORS; n++) sums[m][n] = add_products(sums[m][n], four[n], tokens);
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
      for (int n = 0; n < VECTORS; n++) {
        in_register(sums[m][n]);
        float* value = values[m][n];
        store(value, multiply_add(to_floats(sums[m][n]), same(steps[m]), load(value)));
      }
  }
};

AtenTensorHandle int8_linear(AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle scale,
                             AtenTensorHandle bias, int64_t outputs, int64_t threads) {
  const Sizes sizes(states);
  require(is(scale, aoti_torch_dtype_float32()) && dense(scale) && count(scale) == units_of(outputs) * UNIT,
          "int8_linear takes a float32 scale of whole units");
  Product p{};
  const auto size = [](int64_t padded, int64_t inputs) { return padded * inputs; };
  AtenTensorHandle result = describe(states, sizes, weight, bias, outputs, size, p);
  if (p.count == 0) return result;
  p.scale = data<const float>(scale);
  round_rows<PIECE>(states, sizes, p);
  multiply_all<Tile>(p, p.inputs * UNIT, threads);
  return result;
}

using torch::stable::Tensor;

Tensor boxed(const Tensor& states, const Tensor& weight, const Tensor& scale, std::optional<Tensor> bias,
             int64_t outputs, int64_t threads) {
  return Tensor(int8_linear(states.get(), weight.get(), scale.get(), handle(bias), outputs, threads));
}

}  // namespace
}  // namespace bild

// What a compiled graph calls, without the dispatcher.
extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_bild_int8_linear(
    AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle scale, AtenTensorHandle* bias, int64_t outputs,
    int64_t threads, AtenTensorHandle* result) {
  return bild::hand_over(
      result, [&] { return bild::int8_linear(states, weight, scale, bias ? *bias : nullptr, outputs, threads); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(bild, m) {
  m.def("bild_int8_linear(Tensor states, Tensor weight, Tensor scale, Tensor? bias, int outputs, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bild, CPU, m) { m.impl("bild_int8_linear", TORCH_BOX(&bild::boxed)); }
