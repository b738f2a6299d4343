// A linear layer on 4-bit weights and int8 tokens, for a few rows, by AVX512-VNNI.
//
// bild::int4_linear(states, weight, bias?) rounds the pieces of every row to int8 (rounding.h), multiplies within a group
// of weights (int4.h) exactly, in int32, and adds d times that and m times the sum of the group's tokens in float32.
// Outputs are shared out among threads in units of 32.

#include "int4.h"
#include "rounding.h"

namespace bild {
namespace {

static_assert(PIECE % GROUP == 0);

inline __m512 halves(const uint8_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

struct Tile {
  // Each sum is there twice: of the group, in int32, and of those before it.
  static constexpr int MOST_ROWS = 6, FOUR_VECTORS = 3;

  template <int ROWS, int UNITS>
  static void block(const Rounded& p, int64_t row, int64_t unit) {
    const int64_t next = p.inputs / GROUP * BYTES;
    const uint8_t* weight = p.weight + unit * next;
    const float* token_sums = p.sums + row;
    const __m512i lower = _mm512_set1_epi8(0x0f);
    alignas(64) float values[ROWS][2 * UNITS][16] = {};
    for (int64_t piece = 0, left = p.inputs; left > 0; piece++, left -= PIECE) {
      const int64_t first = piece * p.count + row;
      const int8_t* rows = p.rows + first * PIECE;
      __m512 parts[ROWS][2 * UNITS];
#pragma GCC unroll 6
      for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < 2 * UNITS; n++) parts[m][n] = _mm512_setzero_ps();
      for (const int8_t* end = rows + std::min(PIECE, left); rows < end; rows += GROUP) {
        __m512i sums[ROWS][2 * UNITS];
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
          for (int n = 0; n < 2 * UNITS; n++) sums[m][n] = _mm512_setzero_si512();
#pragma GCC unroll 2
        for (int64_t k = 0; k < STEPS; k++) {
          __m512i four[2 * UNITS];
#pragma GCC unroll 2
          for (int u = 0; u < UNITS; u++) {
            const uint8_t* at = weight + u * next + ENDS + k * VECTOR;
            const __m512i both = _mm512_loadu_si512(at);
            four[2 * u] = _mm512_and_si512(both, lower);
            four[2 * u + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), lower);
            _mm_prefetch(reinterpret_cast<const char*>(at + AHEAD), _MM_HINT_T0);
          }
#pragma GCC unroll 6
          for (int m = 0; m < ROWS; m++) {
            int32_t tokens;
            std::memcpy(&tokens, rows + m * PIECE + 4 * k, sizeof tokens);
            const __m512i same = _mm512_set1_epi32(tokens);
#pragma GCC unroll 4
            for (int n = 0; n < 2 * UNITS; n++) sums[m][n] = _mm512_dpbusd_epi32(sums[m][n], four[n], same);
          }
        }
#pragma GCC unroll 4
        for (int n = 0; n < 2 * UNITS; n++) {
          const uint8_t* at = weight + (n / 2) * next + (n % 2) * (VECTOR / 2);
          const __m512 scale = halves(at), minimum = halves(at + VECTOR);
          _mm_prefetch(reinterpret_cast<const char*>(at + (n % 2) * (VECTOR / 2) + AHEAD), _MM_HINT_T0);
#pragma GCC unroll 6
          for (int m = 0; m < ROWS; m++) {
            const __m512 part = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sums[m][n]), parts[m][n]);
            parts[m][n] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(token_sums[m]), part);
          }
        }
        weight += BYTES;
        token_sums += p.count;
      }
#pragma GCC unroll 6
      for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < 2 * UNITS; n++) {
          float* value = values[m][n];
          const __m512 step = _mm512_set1_ps(p.steps[first + m]);
          _mm512_store_ps(value, _mm512_fmadd_ps(parts[m][n], step, _mm512_load_ps(value)));
        }
    }
    for (int m = 0; m < ROWS; m++)
      for (int n = 0; n < 2 * UNITS; n++) put(p, row + m, unit * UNIT + n * 16, _mm512_load_ps(values[m][n]));
  }
};

AtenTensorHandle int4_linear(AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle bias, int64_t outputs,
                             int64_t threads) {
  const Sizes sizes(states);
  Rounded p{};
  const auto size = [](int64_t padded, int64_t inputs) { return padded / UNIT * (inputs / GROUP) * BYTES; };
  AtenTensorHandle result = describe(states, sizes, weight, bias, outputs, size, p);
  if (p.count == 0) return result;
  round_rows<GROUP>(states, sizes, p);
  // There are as many multiplications as with int8, and the bytes of a few rows come from memory.
  multiply_all<Tile>(p, p.inputs * UNIT, threads);
  return result;
}

using torch::stable::Tensor;

Tensor boxed(const Tensor& states, const Tensor& weight, std::optional<Tensor> bias, int64_t outputs, int64_t threads) {
  return Tensor(int4_linear(states.get(), weight.get(), handle(bias), outputs, threads));
}

}  // namespace
}  // namespace bild

// What a compiled graph calls, without the dispatcher.
extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_bild_int4_linear(
    AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle* bias, int64_t outputs, int64_t threads,
    AtenTensorHandle* result) {
  return bild::hand_over(
      result, [&] { return bild::int4_linear(states, weight, bias ? *bias : nullptr, outputs, threads); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(bild, m) {
  m.def("bild_int4_linear(Tensor states, Tensor weight, Tensor? bias, int outputs, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bild, CPU, m) { m.impl("bild_int4_linear", TORCH_BOX(&bild::boxed)); }
