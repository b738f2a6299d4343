// A linear layer on int8 weights and int8 tokens, for a few rows, by AMX, AVX512-VNNI, AVX-VNNI or AVX2.
//
// bild::int8_linear(states, weight, scale, bias?) rounds the pieces of every row of the states to int8 (rounding.h),
// multiplies by weights packed as int8.h says, exactly in int32 within a piece, and scales back. Outputs are shared out
// among threads in units of 32.

#include "int8.h"

#ifdef __AVX512F__
#include "amx.h"
#endif

namespace bild {
namespace {

struct Product : Rounded {
  const float* scale;
};

// What the inputs of one piece add to the values of some rows and units. Functions of their own, whose sums are said to
// be in registers at their ends: gcc 12 keeps those of many rows in memory otherwise, and moves them at every step.
#ifdef BILD_VNNI

struct Piece {
  static constexpr int MOST_ROWS = REGISTERS == 32 ? 12 : 2, FOUR_VECTORS = REGISTERS == 32 ? 6 : 1;

  //   at: of the first row, among all pieces of all rows.
  template <int ROWS, int VECTORS>
  static __attribute__((noinline)) void add(const Product& p, int64_t at, int64_t inputs, const uint8_t* weight,
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

#else

constexpr int EIGHT = 32;  // bytes of a step: four inputs of as many outputs

// 128 is added to all tokens.
void make_unsigned(const Product& p) {
  const __m256i highest_bits = _mm256_set1_epi8(-128);
  const int8_t* end = p.rows + pieces_of(p.inputs) * p.count * PIECE;
  for (int8_t* tokens = p.rows; tokens < end; tokens += EIGHT) {
    auto* at = reinterpret_cast<__m256i*>(tokens);
    _mm256_storeu_si256(at, _mm256_xor_si256(_mm256_loadu_si256(at), highest_bits));
  }
}

// Four tokens, for each of eight outputs.
inline __m256i same_four(const int8_t* tokens) {
  int32_t four;
  std::memcpy(&four, tokens, sizeof four);
  return _mm256_set1_epi32(four);
}

struct Piece {
  static constexpr int MOST_ROWS = 8, FOUR_VECTORS = 1;

  template <int ROWS, int VECTORS>
  static void add(const Product& p, int64_t at, int64_t inputs, const uint8_t* weight,
                  float (&values)[ROWS][VECTORS][16]) {
    // Few rows by many outputs, or many by few: all sums in registers.
    constexpr int EIGHTS = ROWS > 2 ? 1 : 4;
    for (int first = 0; first < 4; first += EIGHTS) add_eights<ROWS, EIGHTS>(p, at, inputs, weight, first, values);
  }

  //   first: eight outputs of a unit's four.
  template <int ROWS, int EIGHTS, int VECTORS>
  static __attribute__((noinline)) void add_eights(const Product& p, int64_t at, int64_t inputs, const uint8_t* weight,
                                                   int first, float (&values)[ROWS][VECTORS][16]) {
    constexpr int UNITS = VECTORS / 2;
    __m256i sums[UNITS][ROWS][EIGHTS];
    const uint8_t *step[UNITS], *end[UNITS], *weights[UNITS];
#pragma GCC unroll 2
    for (int u = 0; u < UNITS; u++) {
      step[u] = weight + u * bytes_of_unit(p.inputs);
      end[u] = step[u] + inputs / 4;
      weights[u] = step[u] + AHEAD_OF_PIECE + first * EIGHT;
      const auto* owed = reinterpret_cast<const __m256i*>(step[u] + STEPS) + first;
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < EIGHTS; n++) {
          sums[u][m][n] = _mm256_loadu_si256(owed + n);
          in_register(sums[u][m][n]);
        }
    }
    const int8_t* rows = p.rows + at * PIECE;
    const auto is_pair = [&](int u) { return step[u] < end[u] && *step[u] < SINGLE; };
    const auto add_pair = [&](int u) __attribute__((always_inline)) {
      add_steps<2>(sums[u], weights[u], {rows + 4 * step[u][0], rows + 4 * step[u][1]});
      step[u] += 2;
      weights[u] += 2 * STEP;
    };
    // A few bytes of either in turn: memory is read faster in two places than in one.
    if constexpr (UNITS == 2)
      while (is_pair(0) && is_pair(1)) {
        add_pair(0);
        add_pair(1);
      }
#pragma GCC unroll 2
    for (int u = 0; u < UNITS; u++) {
      while (is_pair(u)) add_pair(u);
      for (; step[u] < end[u]; step[u]++, weights[u] += STEP)
        add_steps<1>(sums[u], weights[u], {rows + 4 * (*step[u] - SINGLE)});
#pragma GCC unroll 8
      for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
        for (int n = 0; n < EIGHTS; n++) {
          in_register(sums[u][m][n]);
          float* value = values[m][2 * u] + (first + n) * 8;
          const __m256 whole = _mm256_cvtepi32_ps(sums[u][m][n]), scale = _mm256_set1_ps(p.steps[at + m]);
          _mm256_storeu_ps(value, _mm256_fmadd_ps(whole, scale, _mm256_loadu_ps(value)));
        }
    }
  }

  //   tokens: of the first row, of each step.
  template <int AT_ONCE, int ROWS, int EIGHTS>
  static __attribute__((always_inline)) void add_steps(__m256i (&sums)[ROWS][EIGHTS], const uint8_t* weight,
                                                       const int8_t* const (&tokens)[AT_ONCE]) {
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
      for (int n = 0; n < EIGHTS; n++) {
        __m256i total[AT_ONCE];
#pragma GCC unroll 2
        for (int s = 0; s < AT_ONCE; s++) {
          const uint8_t* from = weight + s * STEP + n * EIGHT;
          if (m == 0 && n % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(from + 2 * AHEAD), _MM_HINT_T0);
          total[s] = _mm256_maddubs_epi16(same_four(tokens[s] + m * PIECE), load_halves(from));
        }
        if constexpr (AT_ONCE == 2) total[0] = _mm256_add_epi16(total[0], total[1]);
        sums[m][n] = _mm256_add_epi32(sums[m][n], _mm256_madd_epi16(total[0], _mm256_set1_epi16(1)));
      }
  }
};

#endif

struct Tile : Piece {
  template <int ROWS, int UNITS>
  static void block(const Product& p, int64_t row, int64_t unit) {
    const uint8_t* weight = p.weight + unit * bytes_of_unit(p.inputs);
    alignas(64) float values[ROWS][2 * UNITS][16] = {};
    for (int64_t piece = 0, left = p.inputs; left > 0; piece++, left -= PIECE) {
      add(p, piece * p.count + row, std::min(PIECE, left), weight, values);
      weight += AHEAD_OF_PIECE + PIECE * UNIT;
    }
    for (int m = 0; m < ROWS; m++)
      for (int n = 0; n < 2 * UNITS; n++) {
        const int64_t output = unit * UNIT + n * 16;
        put(p, row + m, output, load(values[m][n]) * load(p.scale + output));
      }
  }

#ifdef __AVX512F__
  //   rows: of a tile.
  template <int TILES, int UNITS>
  static void tiles(const Product& given, int64_t row, int64_t rows, int64_t unit) {
    // A copy: what is written might be the fields of another's, which would be read anew for each of the outputs.
    const Product p = given;
    Sums<TILES, UNITS> sums;
    alignas(64) float values[TILES * TILE_ROWS][2 * UNITS][16];
    const int64_t count = std::min(TILES * rows, p.count - row), next = p.inputs * UNIT;
    const uint8_t* weight = p.weight + unit * next;
    for (int64_t piece = 0, left = p.inputs; left > 0; piece++, left -= PIECE, weight += PIECE * UNIT) {
      const int64_t at = piece * p.count + row;
      sums.template fill<OfBytes>(p.rows + at * PIECE, rows, PIECE, std::min(PIECE, left), weight, next, row == 0);
      for (int64_t m = 0; m < count; m++) {
        const Whole first = first_sums(static_cast<int32_t>(p.sums[at + m]));
        const Floats step = same(p.steps[at + m]);
        for (int n = 0; n < 2 * UNITS; n++) {
          const Floats whole = to_floats(bild::add(_mm512_load_si512(sums.bits[m][n]), first));
          const Floats value = multiply_add(whole, step, piece ? load(values[m][n]) : same(0));
          const int64_t output = unit * UNIT + n * 16;
          if (left > PIECE)
            store(values[m][n], value);
          else
            put(p, row + m, output, value * load(p.scale + output));
        }
      }
    }
  }
#endif
};

AtenTensorHandle int8_linear(AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle scale,
                             AtenTensorHandle bias, int64_t outputs, int64_t threads) {
  const Sizes sizes(states);
  require(is(scale, aoti_torch_dtype_float32()) && dense(scale) && count(scale) == units_of(outputs) * UNIT,
          "int8_linear takes a float32 scale of whole units");
  Product p{};
  const auto size = [](int64_t padded, int64_t inputs) { return padded / UNIT * bytes_of_unit(inputs); };
  AtenTensorHandle result = describe(states, sizes, weight, bias, outputs, size, p);
  if (p.count == 0) return result;
  p.scale = data<const float>(scale);
  round_rows<PIECE>(states, sizes, threads, p);
#ifndef BILD_VNNI
  make_unsigned(p);
#endif
#ifdef __AVX512F__
  if (fits_tiles(p.count, p.inputs)) {
    multiply_all_tiled<Tile>(p, p.inputs * UNIT, threads);
    return result;
  }
#endif
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
