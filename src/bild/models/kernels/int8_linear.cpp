// A linear layer on int8 weights and int8 tokens, for a few rows, by AVX512-VNNI.
//
// bild::int8_linear(states, weight, scale, bias?) rounds every row of the states to int8 on a scale of its own
// (max |row| / 127), multiplies, and scales back; sums are exact, in int32. Weights are packed by linear.py:
// [outputs / 32][inputs / 4][32][4], unsigned (128 added), which sums of the rounded rows take out again.
// A row that is not finite yields NaN, and no other row notices.
// Outputs are shared out among threads in units of 32.

#include <cmath>
#include <limits>

#include "tiles.h"

namespace bild {
namespace {

struct Product {
  const uint8_t* weight;
  const float* scale;
  const void* bias;  // of the output's type, or null
  const int8_t* rows;
  const float* steps;         // of each row
  const int32_t* corrections; // 128 times the sum of each row
  void* result;
  int64_t count, inputs, outputs;
  bool half;  // bfloat16, else float32
};

// One row as int8; inputs are a multiple of 32.
void round_row(const void* row, bool half, int64_t inputs, int8_t* rounded, float* step, int32_t* correction) {
  // As integers the largest magnitude is found for infinities and NaN as well.
  const __m512i sign = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512();
  for (int64_t k = 0; k < inputs; k += 16)
    most = _mm512_max_epi32(most, _mm512_and_si512(sign, _mm512_castps_si512(read(row, k, half, 0xffff))));
  const int32_t bits = _mm512_reduce_max_epi32(most);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  if (!std::isfinite(largest)) {
    std::memset(rounded, 0, inputs);
    *step = std::numeric_limits<float>::quiet_NaN();
    *correction = 0;
    return;
  }
  *step = std::max(largest / 127.0f, std::numeric_limits<float>::min());
  const __m512 divisor = _mm512_set1_ps(*step);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t k = 0; k < inputs; k += 16) {
    const __m512 scaled = _mm512_div_ps(read(row, k, half, 0xffff), divisor);
    __m512i whole = _mm512_cvtps_epi32(scaled);
    whole = _mm512_max_epi32(_mm512_min_epi32(whole, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
    sum = _mm512_add_epi32(sum, whole);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rounded + k), _mm512_cvtepi32_epi8(whole));
  }
  *correction = 128 * _mm512_reduce_add_epi32(sum);
}

inline void finish(const Product& p, int64_t row, int64_t output, __m512i sums) {
  const int64_t left = p.outputs - output;
  if (left <= 0) return;
  const __mmask16 which = first(left);
  const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(p.corrections[row])));
  __m512 value = _mm512_mul_ps(_mm512_mul_ps(exact, _mm512_set1_ps(p.steps[row])), _mm512_loadu_ps(p.scale + output));
  if (p.bias) {
    // Rounded before the bias is added, as a product and an addition of their own are.
    if (p.half) value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(value)), 16));
    value = _mm512_add_ps(value, read(p.bias, output, p.half, which));
  }
  write(p.result, row * p.outputs + output, p.half, value, which);
}

struct Tile {
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
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
      for (int n = 0; n < 2 * UNITS; n++) finish(p, row + m, unit * UNIT + n * 16, sums[m][n]);
  }
};

void round_rows(AtenTensorHandle states, const Sizes& sizes, Product& p) {
  static thread_local std::vector<int8_t> rounded;
  static thread_local std::vector<float> steps;
  static thread_local std::vector<int32_t> corrections;
  rounded.resize(p.count * p.inputs);
  steps.resize(p.count);
  corrections.resize(p.count);
  const char* from = data<const char>(states);
  const int64_t width = p.half ? 2 : 4;
  for (int64_t m = 0; m < p.count; m++)
    round_row(from + sizes.offset(m) * width, p.half, p.inputs, &rounded[m * p.inputs], &steps[m], &corrections[m]);
  p.rows = rounded.data();
  p.steps = steps.data();
  p.corrections = corrections.data();
}

AtenTensorHandle int8_linear(AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle scale,
                             AtenTensorHandle bias, int64_t outputs, int64_t threads) {
  const Sizes sizes(states);
  int32_t dtype;
  check(aoti_torch_get_dtype(states, &dtype));
  Product p{};
  p.half = dtype == aoti_torch_dtype_bfloat16();
  require(p.half || dtype == aoti_torch_dtype_float32(), "int8_linear takes bfloat16 or float32");
  require(sizes.dims >= 1, "int8_linear takes states [..., inputs]");
  p.inputs = sizes.sizes[sizes.dims - 1];
  p.outputs = outputs;
  const int64_t padded = units_of(outputs) * UNIT;
  require(p.inputs % 32 == 0 && count(weight) == padded * p.inputs, "int8_linear: states and outputs do not fit the weight");
  require(is(weight, aoti_torch_dtype_int8()) && dense(weight), "int8_linear takes a packed weight");
  require(is(scale, aoti_torch_dtype_float32()) && dense(scale) && count(scale) == padded,
          "int8_linear takes a float32 scale of whole units");
  require(!bias || (is(bias, dtype) && dense(bias) && count(bias) == outputs),
          "int8_linear takes a bias of the states' type, one number an output");
  require(p.inputs == 0 || sizes.strides[sizes.dims - 1] == 1, "int8_linear: the last dimension must be dense");
  p.count = rows_of(sizes);
  AtenTensorHandle result = empty(sizes, outputs, dtype);
  if (p.count == 0) return result;
  p.weight = data<const uint8_t>(weight);
  p.scale = data<const float>(scale);
  p.bias = bias ? data<const void>(bias) : nullptr;
  p.result = data<void>(result);
  round_rows(states, sizes, p);
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
