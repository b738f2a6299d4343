// A linear layer on bfloat16 weights and tokens, for a few rows, by AVX512_BF16.
//
// bild::bf16_linear(states, weight, bias?) multiplies pairs of numbers and sums in float32. Weights are packed by
// bf16.py: [outputs / 32][inputs / 2][32][2]. Outputs are shared out among threads in units of 32.

#include "tiles.h"

#define WITH_BF16 __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,fma")))

namespace bild {
namespace {

struct Product {
  const char* weight;
  const void* bias;  // or null
  const uint16_t* rows;
  uint16_t* result;
  int64_t count, inputs, outputs;
};

inline void finish(const Product& p, int64_t row, int64_t output, __m512 value) {
  const int64_t left = p.outputs - output;
  if (left <= 0) return;
  const __mmask16 which = first(left);
  if (p.bias) value = _mm512_add_ps(value, read(p.bias, output, true, which));
  write(p.result, row * p.outputs + output, true, value, which);
}

struct Tile {
  static constexpr int MOST_ROWS = 12, FOUR_VECTORS = 6;

  template <int ROWS, int UNITS>
  WITH_BF16 static void block(const Product& p, int64_t row, int64_t unit) {
    const int64_t steps = p.inputs / 2;
    const char* weight = p.weight + unit * steps * 2 * VECTOR;
    const int64_t next = steps * 2 * VECTOR;
    const uint16_t* rows = p.rows + row * p.inputs;
    __m512 sums[ROWS][2 * UNITS];
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
      for (int n = 0; n < 2 * UNITS; n++) sums[m][n] = _mm512_setzero_ps();
    for (int64_t k = 0; k < steps; k++) {
      __m512i pairs[2 * UNITS];
#pragma GCC unroll 4
      for (int n = 0; n < 2 * UNITS; n++) {
        const char* at = weight + (n / 2) * next + k * 2 * VECTOR + (n % 2) * VECTOR;
        pairs[n] = _mm512_loadu_si512(at);
        _mm_prefetch(at + AHEAD, _MM_HINT_T0);
      }
#pragma GCC unroll 12
      for (int m = 0; m < ROWS; m++) {
        int32_t pair;
        std::memcpy(&pair, rows + m * p.inputs + 2 * k, sizeof pair);
        const __m512i same = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
        for (int n = 0; n < 2 * UNITS; n++)
          sums[m][n] = _mm512_dpbf16_ps(sums[m][n], reinterpret_cast<__m512bh>(pairs[n]), reinterpret_cast<__m512bh>(same));
      }
    }
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
      for (int n = 0; n < 2 * UNITS; n++) finish(p, row + m, unit * UNIT + n * 16, sums[m][n]);
  }
};

// The rows one behind the other, copied where they do not lie so.
const uint16_t* dense_rows(AtenTensorHandle states, const Sizes& sizes, const Product& p) {
  const uint16_t* from = data<const uint16_t>(states);
  bool even = true;
  for (int64_t m = 0; m < p.count && even; m++) even = sizes.offset(m) == m * p.inputs;
  if (even) return from;
  static thread_local std::vector<uint16_t> copied;
  copied.resize(p.count * p.inputs);
  for (int64_t m = 0; m < p.count; m++) std::memcpy(&copied[m * p.inputs], from + sizes.offset(m), 2 * p.inputs);
  return copied.data();
}

AtenTensorHandle bf16_linear(AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle bias, int64_t outputs,
                             int64_t threads) {
  const Sizes sizes(states);
  const int32_t half = aoti_torch_dtype_bfloat16();
  require(is(states, half) && is(weight, half) && sizes.dims >= 1, "bf16_linear takes states [..., inputs] in bfloat16");
  Product p{};
  p.inputs = sizes.sizes[sizes.dims - 1];
  p.outputs = outputs;
  require(p.inputs % 2 == 0 && dense(weight) && count(weight) == units_of(outputs) * UNIT * p.inputs,
          "bf16_linear: states and outputs do not fit the weight");
  require(!bias || (is(bias, half) && dense(bias) && count(bias) == outputs),
          "bf16_linear takes a bias in bfloat16, one number an output");
  require(p.inputs == 0 || sizes.strides[sizes.dims - 1] == 1, "bf16_linear: the last dimension must be dense");
  p.count = rows_of(sizes);
  AtenTensorHandle result = empty(sizes, outputs, half);
  if (p.count == 0) return result;
  p.weight = data<const char>(weight);
  p.bias = bias ? data<const void>(bias) : nullptr;
  p.result = data<uint16_t>(result);
  p.rows = dense_rows(states, sizes, p);
  multiply_all<Tile>(p, 2 * p.inputs * UNIT, threads);
  return result;
}

using torch::stable::Tensor;

Tensor boxed(const Tensor& states, const Tensor& weight, std::optional<Tensor> bias, int64_t outputs, int64_t threads) {
  return Tensor(bf16_linear(states.get(), weight.get(), handle(bias), outputs, threads));
}

}  // namespace
}  // namespace bild

// What a compiled graph calls, without the dispatcher.
extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_bild_bf16_linear(
    AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle* bias, int64_t outputs, int64_t threads,
    AtenTensorHandle* result) {
  return bild::hand_over(
      result, [&] { return bild::bf16_linear(states, weight, bias ? *bias : nullptr, outputs, threads); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(bild, m) {
  m.def("bild_bf16_linear(Tensor states, Tensor weight, Tensor? bias, int outputs, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bild, CPU, m) { m.impl("bild_bf16_linear", TORCH_BOX(&bild::boxed)); }
