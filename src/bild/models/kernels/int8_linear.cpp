// A linear layer on int8 weights and int8 tokens, for a few rows, by AVX512-VNNI.
//
// bild::int8_linear(states, weight, scale, bias?) rounds every row of the states to int8 (rounding.h), multiplies, and
// scales back; sums are exact, in int32. Weights are packed by linear.py: [outputs / 32][inputs / 4][32][4], unsigned
// (128 added), which sums of the rounded rows take out again. Outputs are shared out among threads in units of 32.

#include "rounding.h"

namespace bild {
namespace {

struct Product : Rounded {
  const float* scale;
  const int32_t* corrections;  // 128 times the sum of each row
};

inline void finish(const Product& p, int64_t row, int64_t output, __m512i sums) {
  const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(p.corrections[row])));
  put(p, row, output,
      _mm512_mul_ps(_mm512_mul_ps(exact, _mm512_set1_ps(p.steps[row])), _mm512_loadu_ps(p.scale + output)));
}

struct Tile {
  static constexpr int MOST_ROWS = 12, FOUR_VECTORS = 6;

  template <int ROWS, int UNITS>
  static void block(const Product& p, int64_t row, int64_t unit) {
    const int64_t steps = p.inputs / 4;
    const uint8_t* weight = p.weight + unit * steps * 2 * VECTOR;
    const int64_t next = steps * 2 * VECTOR;
    const int8_t* rows = p.rows + row * p.inputs;
    __m512i sums[ROWS][2 * UNITS];
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
      for (int n = 0; n < 2 * UNITS; n++) sums[m][n] = _mm512_setzero_si512();
    for (int64_t k = 0; k < steps; k++) {
      __m512i four[2 * UNITS];
#pragma GCC unroll 4
      for (int n = 0; n < 2 * UNITS; n++) {
        const uint8_t* at = weight + (n / 2) * next + k * 2 * VECTOR + (n % 2) * VECTOR;
        four[n] = _mm512_loadu_si512(at);
        _mm_prefetch(reinterpret_cast<const char*>(at + AHEAD), _MM_HINT_T0);
      }
#pragma GCC unroll 12
      for (int m = 0; m < ROWS; m++) {
        int32_t tokens;
        std::memcpy(&tokens, rows + m * p.inputs + 4 * k, sizeof tokens);
        const __m512i same = _mm512_set1_epi32(tokens);
#pragma GCC unroll 4
        for (int n = 0; n < 2 * UNITS; n++) sums[m][n] = _mm512_dpbusd_epi32(sums[m][n], four[n], same);
      }
    }
    // Put down first: with all that follows unrolled, gcc 12 keeps the sums of many rows in memory in the loop above.
    alignas(64) int32_t kept[ROWS][2 * UNITS][16];
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
      for (int n = 0; n < 2 * UNITS; n++) _mm512_store_si512(kept[m][n], sums[m][n]);
    for (int m = 0; m < ROWS; m++)
      for (int n = 0; n < 2 * UNITS; n++) finish(p, row + m, unit * UNIT + n * 16, _mm512_load_si512(kept[m][n]));
  }
};

// The rows, and what the 128 added to each weight make of them.
void round_all(AtenTensorHandle states, const Sizes& sizes, Product& p) {
  static thread_local std::vector<int32_t> corrections;
  corrections.resize(p.count);
  round_rows(states, sizes, p, 1, [&p](int64_t row, const char* from, int8_t* rounded, float* step) {
    __m512i sum = _mm512_setzero_si512();
    const auto add = [&sum](int64_t, __m512i one, __m512i other) {
      sum = _mm512_add_epi32(sum, _mm512_add_epi32(one, other));
    };
    round_row(from, p.half, p.inputs, rounded, step, add);
    corrections[row] = 128 * _mm512_reduce_add_epi32(sum);
  });
  p.corrections = corrections.data();
}

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
  round_all(states, sizes, p);
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
