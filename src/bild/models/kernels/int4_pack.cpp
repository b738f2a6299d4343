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
  __m512 numbers[2];
};

inline float sum(const __m512 (&of)[2]) { return _mm512_reduce_add_ps(_mm512_add_ps(of[0], of[1])); }

// A way to write a group, and its square error.
struct Fit {
  __m256i scale, minimum;  // float16, the same 16 times
  __m512i whole[2];
  float error;
};

inline __m512i rounded(__m512 value) {
  const __m512i whole = _mm512_cvtps_epi32(value);
  return _mm512_max_epi32(_mm512_min_epi32(whole, _mm512_set1_epi32(LEVELS)), _mm512_setzero_si512());
}

inline __m256i as_half(float value) {
  const float most = 65504.0f;
  return _mm512_cvtps_ph(_mm512_set1_ps(value > most ? most : value < -most ? -most : value), _MM_FROUND_TO_NEAREST_INT);
}

Fit fit(const Group& group, float scale, float minimum) {
  Fit found;
  found.scale = as_half(scale);
  found.minimum = as_half(minimum);
  const __m512 d = _mm512_cvtph_ps(found.scale), m = _mm512_cvtph_ps(found.minimum);
  const __mmask16 moves = _mm512_cmp_ps_mask(d, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  __m512 squares[2];
  for (int n = 0; n < 2; n++) {
    const __m512 above = _mm512_sub_ps(group.numbers[n], m);
    found.whole[n] = rounded(_mm512_maskz_div_ps(moves, above, d));
    const __m512 off = _mm512_fnmadd_ps(d, _mm512_cvtepi32_ps(found.whole[n]), above);
    squares[n] = _mm512_mul_ps(off, off);
  }
  found.error = sum(squares);
  return found;
}

// Least squares through what numbers from low + start on are rounded to in steps of 1 / inverse.
Fit fit_line(const Group& group, float low, float start, float inverse) {
  __m512 above[2], whole[2], squares[2], products[2];
  for (int n = 0; n < 2; n++) {
    above[n] = _mm512_sub_ps(group.numbers[n], _mm512_set1_ps(low));
    const __m512 moved = _mm512_sub_ps(above[n], _mm512_set1_ps(start));
    whole[n] = _mm512_cvtepi32_ps(rounded(_mm512_mul_ps(moved, _mm512_set1_ps(inverse))));
    squares[n] = _mm512_mul_ps(whole[n], whole[n]);
    products[n] = _mm512_mul_ps(whole[n], above[n]);
  }
  const float x = sum(whole), y = sum(above);
  const float spread = GROUP * sum(squares) - x * x;
  const float scale = spread == 0 ? 0 : (GROUP * sum(products) - x * y) / spread;
  return fit(group, scale, low + (y - scale * x) / GROUP);
}

Fit best(const Group& group) {
  const float low = _mm512_reduce_min_ps(_mm512_min_ps(group.numbers[0], group.numbers[1]));
  const float high = _mm512_reduce_max_ps(_mm512_max_ps(group.numbers[0], group.numbers[1]));
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
    const Fit found = best({{read(row, g * GROUP, half, 0xffff), read(row, g * GROUP + 16, half, 0xffff)}});
    const int16_t ends[] = {static_cast<int16_t>(_mm256_extract_epi16(found.scale, 0)),
                            static_cast<int16_t>(_mm256_extract_epi16(found.minimum, 0))};
    for (int n = 0; n < 2; n++) std::memcpy(to + n * VECTOR + 2 * place, &ends[n], 2);
    uint8_t numbers[GROUP];
    for (int n = 0; n < 2; n++)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers + 16 * n), _mm512_cvtepi32_epi8(found.whole[n]));
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
