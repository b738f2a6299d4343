// A linear layer on bfloat16 weights and tokens, for a few rows, by AVX512_BF16.
//
// bild::bf16_linear(states, weight, bias?) multiplies pairs of numbers and sums in float32. Weights are packed by
// bf16.py: [outputs / 32][inputs / 2][32][2]. Outputs are shared out among threads in units of 32.

#include <optional>

#include "common.h"

#define WITH_BF16 __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,fma")))

namespace bild {
namespace {

constexpr int64_t UNIT = 32;         // outputs packed together
constexpr int64_t MOST_ROWS = 12;    // rows times two vectors of sums fill the registers
constexpr int64_t FOUR_VECTORS = 6;  // rows up to which four vectors of sums do
constexpr int64_t AHEAD = 2048;      // bytes fetched before they are needed

struct Product {
  const char* weight;
  const void* bias;  // or null
  const uint16_t* rows;
  uint16_t* result;
  int64_t count, stride, inputs, outputs;
};

inline void finish(const Product& p, int64_t row, int64_t output, __m512 value) {
  const int64_t left = p.outputs - output;
  if (left <= 0) return;
  const __mmask16 which = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
  if (p.bias) value = _mm512_add_ps(value, read(p.bias, output, true, which));
  write(p.result, row * p.outputs + output, true, value, which);
}

// ROWS rows by UNITS units, all sums in registers.
template <int ROWS, int UNITS>
WITH_BF16 void block(const Product& p, int64_t row, int64_t unit) {
  const int64_t steps = p.inputs / 2;
  const char* weight = p.weight + unit * steps * 2 * VECTOR;
  const int64_t next = steps * 2 * VECTOR;
  const uint16_t* rows = p.rows + row * p.stride;
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
      std::memcpy(&pair, rows + m * p.stride + 2 * k, sizeof pair);
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

using Block = void (*)(const Product&, int64_t, int64_t);
const Block TWO_UNITS[] = {nullptr, block<1, 2>, block<2, 2>, block<3, 2>, block<4, 2>, block<5, 2>, block<6, 2>};
const Block ONE_UNIT[] = {nullptr,     block<1, 1>, block<2, 1>, block<3, 1>,  block<4, 1>,  block<5, 1>, block<6, 1>,
                          block<7, 1>, block<8, 1>, block<9, 1>, block<10, 1>, block<11, 1>, block<12, 1>};

// All rows by some units.
void multiply(const Product& p, int64_t unit, int64_t end) {
  const int64_t blocks = (p.count + MOST_ROWS - 1) / MOST_ROWS;
  while (unit < end) {
    const bool two = unit + 1 < end && p.count <= FOUR_VECTORS;
    for (int64_t b = 0, row = 0; b < blocks; b++) {
      const int64_t rows = (p.count - row) / (blocks - b);
      (two ? TWO_UNITS[rows] : ONE_UNIT[rows])(p, row, unit);
      row += rows;
    }
    unit += two ? 2 : 1;
  }
}

// The rows one behind the other, copied where they do not lie so.
const uint16_t* dense_rows(AtenTensorHandle states, const Sizes& sizes, Product& p) {
  const uint16_t* from = data<const uint16_t>(states);
  p.stride = p.inputs;
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
  const int64_t units = (outputs + UNIT - 1) / UNIT;
  require(p.inputs % 2 == 0 && dense(weight) && ::bild::count(weight) == units * UNIT * p.inputs,
          "bf16_linear: states and outputs do not fit the weight");
  require(!bias || (is(bias, half) && dense(bias) && ::bild::count(bias) == outputs),
          "bf16_linear takes a bias in bfloat16, one number an output");
  require(p.inputs == 0 || sizes.strides[sizes.dims - 1] == 1, "bf16_linear: the last dimension must be dense");
  p.count = 1;
  for (int64_t d = 0; d < sizes.dims - 1; d++) p.count *= sizes.sizes[d];
  AtenTensorHandle result = empty(sizes, outputs, half);
  if (p.count == 0) return result;
  p.weight = data<const char>(weight);
  p.bias = bias ? data<const void>(bias) : nullptr;
  p.result = data<uint16_t>(result);
  p.rows = dense_rows(states, sizes, p);
  // A unit is bound by reading it or by multiplying it.
  const int64_t cycles = 2 * p.inputs * UNIT * std::max<int64_t>(2, p.count) / VECTOR;
  share_out(units, cycles, threads, [&p](int64_t begin, int64_t end) { multiply(p, begin, end); });
  return result;
}

using torch::stable::Tensor;

Tensor boxed(const Tensor& states, const Tensor& weight, std::optional<Tensor> bias, int64_t outputs, int64_t threads) {
  return Tensor(bf16_linear(states.get(), weight.get(), bias ? bias->get() : nullptr, outputs, threads));
}

}  // namespace
}  // namespace bild

// What a compiled graph calls, without the dispatcher.
extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_bild_bf16_linear(
    AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle* bias, int64_t outputs, int64_t threads,
    AtenTensorHandle* result) {
  try {
    *result = bild::bf16_linear(states, weight, bias ? *bias : nullptr, outputs, threads);
    return AOTI_TORCH_SUCCESS;
  } catch (...) {
    return AOTI_TORCH_FAILURE;
  }
}

STABLE_TORCH_LIBRARY_FRAGMENT(bild, m) {
  m.def("bild_bf16_linear(Tensor states, Tensor weight, Tensor? bias, int outputs, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bild, CPU, m) { m.impl("bild_bf16_linear", TORCH_BOX(&bild::boxed)); }
