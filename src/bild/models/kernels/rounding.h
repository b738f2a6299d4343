// What linear layers on rounded weights share: their tokens, rounded to int8, and how a result is written.
//
// Every piece of a row has a scale of its own (max |piece| / 127): a single large number costs its neighbours their last bits,
// and no others. Rows stay independent of each other. A row that is not finite yields NaN, and no other row notices.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "tiles.h"

namespace bild {

// Inputs of a row that are rounded together; the last piece is what is left. AVX2 has fewer bits for weights (int8.h),
// which shorter pieces make up for.
#ifdef BILD_VNNI
constexpr int64_t PIECE = 256;
#else
constexpr int64_t PIECE = 128;
#endif

constexpr int64_t SPARE_ROWS = 16;  // behind the last one, of which a tile may read some

inline int64_t pieces_of(int64_t inputs) { return (inputs + PIECE - 1) / PIECE; }

// A product as its tiles see it; what its kind of weights needs besides is added to it.
struct Rounded {
  const uint8_t* weight;
  const void* bias;    // of the output's type, or null
  int8_t* rows;        // [pieces][count][PIECE], so that a tile finds all of its rows at fixed distances
  const float* steps;  // [pieces][count]
  const float* sums;   // of each span of the rounded numbers, [spans][count]
  void* result;
  int64_t count, inputs, outputs;
  bool half;  // bfloat16, else float32
};

// A piece of a row as int8; inputs are a multiple of 32. Where it is not finite it is zeros with a step of NaN.
//   sums: of every SPAN of the rounded numbers, one in so many places.
template <int64_t SPAN>
void round_piece(const char* row, bool half, int64_t inputs, int8_t* rounded, float* step, float* sums, int64_t places) {
  // As integers the largest magnitude is found for infinities and NaN as well.
  Whole most_bits = whole(0);
  for (int64_t k = 0; k < inputs; k += 16) most_bits = most(most_bits, magnitude_bits(read(row, k, half)));
  const int32_t bits = highest(most_bits);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  if (!std::isfinite(largest)) {
    std::memset(rounded, 0, inputs);
    for (int64_t begin = 0; begin < inputs; begin += SPAN) sums[begin / SPAN * places] = 0;
    *step = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  *step = std::max(largest / 127.0f, std::numeric_limits<float>::min());
  const Floats inverse = same(1.0f / *step);  // of which one division is enough
  for (int64_t begin = 0; begin < inputs; begin += SPAN) {
    Whole total = whole(0);
    for (int64_t k = begin; k < std::min(begin + SPAN, inputs); k += 16) {
      // None is beyond 127: the largest one is less than a rounding error above it.
      const Whole kept = to_whole(read(row, k, half) * inverse);
      store_bytes(rounded + k, kept);
      total = add(total, kept);
    }
    sums[begin / SPAN * places] = static_cast<float>(sum(total));
  }
}

// All rows, shared out among threads, in memory of this one.
template <int64_t SPAN>
void round_rows(AtenTensorHandle states, const Sizes& sizes, int64_t threads, Rounded& p) {
  static thread_local std::vector<int8_t> rounded;
  static thread_local std::vector<float> steps, sums;
  const int64_t pieces = pieces_of(p.inputs);
  rounded.resize((pieces * p.count + SPARE_ROWS) * PIECE);
  steps.resize(pieces * p.count);
  sums.resize((p.inputs + SPAN - 1) / SPAN * p.count);
  p.rows = rounded.data();
  p.steps = steps.data();
  p.sums = sums.data();
  const char* from = data<const char>(states);
  const int64_t width = p.half ? 2 : 4;
  // Pointers of this thread's memory, which others write too.
  const auto round = [&, to = rounded.data(), steps = steps.data(), sums = sums.data()](int64_t row, int64_t end) {
    for (; row < end; row++)
      for (int64_t piece = 0; piece < pieces; piece++) {
        const int64_t begin = piece * PIECE, at = piece * p.count + row;
        round_piece<SPAN>(from + (sizes.offset(row) + begin) * width, p.half, std::min(PIECE, p.inputs - begin),
                          to + at * PIECE, steps + at, sums + begin / SPAN * p.count + row, p.count);
      }
  };
  share_out(p.count, p.inputs, threads, std::ref(round));
}

// 16 outputs of a row, scaled already: the bias is added, and they are written where they are. Always inline: vectors do not
// outlive a call, and sums that had to would be in memory in the loop that adds them up.
inline __attribute__((always_inline)) void put(const Rounded& p, int64_t row, int64_t output, Floats value) {
  const int64_t left = p.outputs - output;
  if (left <= 0) return;
  if (p.bias) {
    // Rounded before the bias is added, as a product and an addition of their own are.
    if (p.half) value = widen(narrow(value));
    value = value + read(p.bias, output, p.half, left);
  }
  write(p.result, row * p.outputs + output, p.half, value, left);
}

// Checks what was given and describes it; the result is made, its rows are not yet rounded.
//   size: bytes that the packed weight has, of the padded outputs and the inputs.
template <class Size>
AtenTensorHandle describe(AtenTensorHandle states, const Sizes& sizes, AtenTensorHandle weight, AtenTensorHandle bias,
                          int64_t outputs, Size size, Rounded& p) {
  int32_t dtype;
  check(aoti_torch_get_dtype(states, &dtype));
  p.half = dtype == aoti_torch_dtype_bfloat16();
  require(p.half || dtype == aoti_torch_dtype_float32(), "a layer on rounded weights takes bfloat16 or float32");
  require(sizes.dims >= 1, "a layer on rounded weights takes states [..., inputs]");
  p.inputs = sizes.sizes[sizes.dims - 1];
  p.outputs = outputs;
  require(p.inputs % 32 == 0 && count(weight) == size(units_of(outputs) * UNIT, p.inputs),
          "states and outputs do not fit the rounded weight");
  require(is(weight, aoti_torch_dtype_int8()) && dense(weight), "a layer on rounded weights takes a packed weight");
  require(!bias || (is(bias, dtype) && dense(bias) && count(bias) == outputs),
          "a layer on rounded weights takes a bias of the states' type, one number an output");
  require(p.inputs == 0 || sizes.strides[sizes.dims - 1] == 1, "the last dimension of states must be dense");
  p.count = rows_of(sizes);
  p.weight = data<const uint8_t>(weight);
  p.bias = bias ? data<const void>(bias) : nullptr;
  AtenTensorHandle result = empty(sizes, outputs, dtype);
  p.result = p.count == 0 ? nullptr : data<void>(result);
  return result;
}

}  // namespace bild
