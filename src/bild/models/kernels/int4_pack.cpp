// Weights rounded to four bits and packed as int4.h says.
//
// bild::int4_pack(weight) tries a few d and m for each group and keeps those with the least square error: the ends of
// the group's range, as GGUF's Q4_1 has them; the grid of Q4_0; and least squares through what the range, cut into
// about 15 steps, was rounded to. Weights that came from either kind of block so stay what they are. The reference is
// round_groups in int4.py.

#include "int4.h"

namespace bild {
namespace {

// Steps that a range is cut into. Of more than 15 the ends are clipped; fewer are what a block that does not use all of
// its numbers had.
constexpr float CUTS[] = {13.0f, 14.0f, 15.0f, 15.7f, 16.4f};

// 32 weights.
struct Group {
  Floats numbers[2];
};

inline float total(const Floats (&of)[2]) { return sum(of[0] + of[1]); }

// A way to write a group, and its square error.
struct Fit {
  Halves scale, minimum;  // float16, the same 16 times
  Whole whole[2];
  float error;
};

inline Whole rounded(Floats value) { return most(least(to_whole(value), whole(LEVELS)), whole(0)); }

inline Halves as_half(float value) {
  const float largest = 65504.0f;
  return to_float16(same(value > largest ? largest : value < -largest ? -largest : value));
}

Fit fit(const Group& group, float scale, float minimum) {
  Fit found;
  found.scale = as_half(scale);
  found.minimum = as_half(minimum);
  const Floats d = of_float16(found.scale), m = of_float16(found.minimum);
  const Floats none = same(0.0f);
  const Lanes moves = differ(d, none);
  Floats squares[2];
  for (int n = 0; n < 2; n++) {
    const Floats above = group.numbers[n] - m;
    found.whole[n] = rounded(choose(moves, above / d, none));
    const Floats off = minus_product(d, to_floats(found.whole[n]), above);
    squares[n] = off * off;
  }
  found.error = total(squares);
  return found;
}

// Least squares through what numbers from low + start on are rounded to in steps of 1 / inverse.
Fit fit_line(const Group& group, float low, float start, float inverse) {
  Floats above[2], whole[2], squares[2], products[2];
  for (int n = 0; n < 2; n++) {
    above[n] = group.numbers[n] - same(low);
    const Floats moved = above[n] - same(start);
    whole[n] = to_floats(rounded(moved * same(inverse)));
    squares[n] = whole[n] * whole[n];
    products[n] = whole[n] * above[n];
  }
  const float x = total(whole), y = total(above);
  const float spread = GROUP * total(squares) - x * x;
  const float scale = spread == 0 ? 0 : (GROUP * total(products) - x * y) / spread;
  return fit(group, scale, low + (y - scale * x) / GROUP);
}

Fit best(const Group& group) {
  const float low = lowest(least(group.numbers[0], group.numbers[1]));
  const float high = highest(most(group.numbers[0], group.numbers[1]));
  const float range = high - low;
  Fit found = fit(group, range / LEVELS, low);
  const auto compare = [&found](const Fit& other) {
    if (other.error < found.error) found = other;
  };
  const float farthest = high > -low ? high : low;
  compare(fit(group, farthest / -8, farthest));
  for (const float steps : CUTS) {
    const float clipped = std::max(0.0f, steps - LEVELS) / 2;
    compare(fit_line(group, low, range * clipped / steps, range > 0 ? steps / range : 0));
  }
  return found;
}

// One output of a unit, its number there `place`; `to` is where the unit begins.
void pack_row(const void* row, bool half, int64_t groups, int64_t place, uint8_t* to) {
  for (int64_t g = 0; g < groups; g++, to += BYTES) {
    const Fit found = best({{read(row, g * GROUP, half), read(row, g * GROUP + 16, half)}});
    const int16_t ends[] = {static_cast<int16_t>(_mm256_extract_epi16(found.scale, 0)),
                            static_cast<int16_t>(_mm256_extract_epi16(found.minimum, 0))};
    for (int n = 0; n < 2; n++) std::memcpy(to + n * VECTOR + 2 * place, &ends[n], 2);
    uint8_t numbers[GROUP];
    for (int n = 0; n < 2; n++) store_bytes(numbers + 16 * n, found.whole[n]);
    for (int64_t k = 0; k < GROUP; k++)
      to[ENDS + k / 4 * VECTOR + place % 16 * 4 + k % 4] |= static_cast<uint8_t>(numbers[k] << (place < 16 ? 0 : 4));
  }
}

AtenTensorHandle int4_pack(AtenTensorHandle weight, int64_t threads) {
  const Sizes sizes(weight);
  int32_t dtype;
  check(aoti_torch_get_dtype(weight, &dtype));
  const bool half = dtype == aoti_torch_dtype_bfloat16();
  require(half || dtype == aoti_torch_dtype_float32(), "int4_pack takes bfloat16 or float32");
  require(sizes.dims == 2 && sizes.sizes[1] % GROUP == 0 && dense(weight), "int4_pack takes a dense weight of whole groups");
  const int64_t outputs = sizes.sizes[0], inputs = sizes.sizes[1], groups = inputs / GROUP;
  const int64_t shape[] = {units_of(outputs) * UNIT, groups * BYTES / UNIT}, strides[] = {shape[1], 1};
  AtenTensorHandle result;
  check(aoti_torch_empty_strided(2, shape, strides, aoti_torch_dtype_int8(), aoti_torch_device_type_cpu(), 0, &result));
  if (shape[0] * shape[1] == 0) return result;
  const char* from = data<const char>(weight);
  uint8_t* to = data<uint8_t>(result);
  std::memset(to, 0, shape[0] * shape[1]);
  share_out(units_of(outputs), UNIT * groups * 500, threads, [=](int64_t begin, int64_t end) {
    for (int64_t o = begin * UNIT; o < std::min(outputs, end * UNIT); o++)
      pack_row(from + o * inputs * (half ? 2 : 4), half, groups, o % UNIT, to + o / UNIT * groups * BYTES);
  });
  return result;
}

using torch::stable::Tensor;

Tensor boxed_pack(const Tensor& weight, int64_t threads) { return Tensor(int4_pack(weight.get(), threads)); }

}  // namespace
}  // namespace bild

STABLE_TORCH_LIBRARY_FRAGMENT(bild, m) { m.def("bild_int4_pack(Tensor weight, int threads) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(bild, CPU, m) { m.impl("bild_int4_pack", TORCH_BOX(&bild::boxed_pack)); }
