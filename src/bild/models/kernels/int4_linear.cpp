// A linear layer on 4-bit weights and int8 tokens, for a few rows, by AVX512-VNNI or AVX2.
//
// bild::int4_linear(states, weight, bias?) rounds the pieces of every row to int8 (rounding.h), multiplies within a group
// of weights (int4.h) exactly, in int32, and adds d times that and m times the sum of the group's tokens in float32.
// Outputs are shared out among threads in units of 32.

#include "int4.h"
#include "rounding.h"

namespace bild {
namespace {

static_assert(PIECE % GROUP == 0);

struct Tile {
  // Each sum is there twice: of the group, in int32, and of those before it.
  static constexpr int MOST_ROWS = REGISTERS == 32 ? 6 : 2, FOUR_VECTORS = REGISTERS == 32 ? 3 : 1;

  template <int ROWS, int UNITS>
  static void block(const Rounded& p, int64_t row, int64_t unit) {
    const int64_t next = p.inputs / GROUP * BYTES;
    const uint8_t* weight = p.weight + unit * next;
    const float* token_sums = p.sums + row;
    alignas(64) float values[ROWS][2 * UNITS][16] = {};
    for (int64_t piece = 0, left = p.inputs; left > 0; piece++, left -= PIECE) {
      const int64_t at = piece * p.count + row;
      const int8_t* rows = p.rows + at * PIECE;
      Floats parts[ROWS][2 * UNITS];
#pragma GCC unroll 6
      for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < 2 * UNITS; n++) parts[m][n] = same(0.0f);
      for (const int8_t* end = rows + std::min(PIECE, left); rows < end; rows += GROUP) {
        Sums4 sums[ROWS][2 * UNITS];
#pragma GCC unroll 6
        for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
          for (int n = 0; n < 2 * UNITS; n++) sums[m][n] = first_sums4();
#pragma GCC unroll 2
        for (int64_t k = 0; k < STEPS; k++) {
          Bytes four[2 * UNITS];
#pragma GCC unroll 2
          for (int u = 0; u < UNITS; u++) {
            const uint8_t* at = weight + u * next + ENDS + k * VECTOR;
            const Bytes both = load_bytes(at);
            four[2 * u] = lower_fours(both);
            four[2 * u + 1] = upper_fours(both);
            _mm_prefetch(reinterpret_cast<const char*>(at + AHEAD), _MM_HINT_T0);
          }
#pragma GCC unroll 6
          for (int m = 0; m < ROWS; m++) {
            int32_t tokens;
            std::memcpy(&tokens, rows + m * PIECE + 4 * k, sizeof tokens);
#pragma GCC unroll 4
            for (int n = 0; n < 2 * UNITS; n++) sums[m][n] = add_products4(sums[m][n], four[n], tokens);
          }
        }
#pragma GCC unroll 4
        for (int n = 0; n < 2 * UNITS; n++) {
          const uint8_t* at = weight + (n / 2) * next + (n % 2) * (VECTOR / 2);
          const Floats scale = of_float16(load_halves(at)), minimum = of_float16(load_halves(at + VECTOR));
          _mm_prefetch(reinterpret_cast<const char*>(at + (n % 2) * (VECTOR / 2) + AHEAD), _MM_HINT_T0);
#pragma GCC unroll 6
          for (int m = 0; m < ROWS; m++) {
            const Floats part = multiply_add(scale, to_floats4(sums[m][n]), parts[m][n]);
            parts[m][n] = multiply_add(minimum, same(token_sums[m]), part);
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
          store(value, multiply_add(parts[m][n], same(p.steps[at + m]), load(value)));
        }
    }
    for (int m = 0; m < ROWS; m++)
      for (int n = 0; n < 2 * UNITS; n++) put(p, row + m, unit * UNIT + n * 16, load(values[m][n]));
  }
};

AtenTensorHandle int4_linear(AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle bias, int64_t outputs,
                             int64_t threads) {
  const Sizes sizes(states);
  Rounded p{};
  const auto size = [](int64_t padded, int64_t inputs) { return padded / UNIT * (inputs / GROUP) * BYTES; };
  AtenTensorHandle result = describe(states, sizes, weight, bias, outputs, size, p);
  if (p.count == 0) return result;
  round_rows<GROUP>(states, sizes, threads, p);
  // There are as many multiplications as with int8, and the bytes of a few rows come from memory.
  multiply_all<Tile>(p, p.inputs * UNIT, threads);
  return result;
}

}  // namespace
}  // namespace bild

BILD_LINEAR_OPERATOR(int4_linear)
