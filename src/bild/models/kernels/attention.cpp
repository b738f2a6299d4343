// Attention of queries over keys and values that lie row by row, by AVX512.
//
// bild::attention(queries, keys, values, places?, mask?, scale) is softmax(queries · keysᵀ · scale + mask) · values, computed in
// float32. Several heads of queries may share one of keys and values; row b reads those of row places[b]. A column that the mask forbids is not read; a
// query that sees nothing yields zeros. The result lies [B, T, H, D], as the product behind it reads it.

#include <cmath>
#include <limits>

#include "common.h"

namespace bild {
namespace {

constexpr int64_t WIDEST = 256;  // numbers a head
constexpr int64_t TOGETHER = 4;  // queries that share what is read of a key
constexpr int64_t MANY = 64;     // queries beyond which it pays to lay out the keys anew
constexpr int64_t TOGETHER_OF_MANY = 6;

struct Strided {
  const char* data;
  int64_t row, head, token;  // bytes; 0 where one is for all
};

struct Attention {
  Strided queries, keys, values, mask;
  char* result;
  const int64_t* places;  // of the keys and values of each row, or null
  int64_t step;           // from one place to the next
  int64_t rows, heads, shared, tokens, columns, width;
  float scale;
  bool half;
  int mask_bytes;  // 0: none, 1: bool, 2: bfloat16, 4: float32
};

// e^x of numbers not above 0.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
  rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.9875691500e-4f);
  for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(next));
  sum = _mm512_fmadd_ps(sum, _mm512_mul_ps(rest, rest), _mm512_add_ps(rest, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(sum, whole);
}

inline float mask_at(const Attention& a, const char* place, int64_t column) {
  if (a.mask_bytes == 0) return 0.0f;
  if (a.mask_bytes == 1) return place[column] ? 0.0f : -std::numeric_limits<float>::infinity();
  float value;
  if (a.mask_bytes == 4) {
    std::memcpy(&value, place + 4 * column, 4);
  } else {
    uint16_t bits;
    std::memcpy(&bits, place + 2 * column, 2);
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    std::memcpy(&value, &wide, 4);
  }
  return value;
}

// The lowest finite numbers stand for "forbidden" as well: e^x of them is 0 beside any other.
constexpr float LOWEST = -1e30f;
inline bool forbidden(float mask) { return mask < LOWEST; }

// Of 16 columns, which are not forbidden, and what is added to their scores.
inline __mmask16 masks_at(const Attention& a, const char* place, int64_t column, __mmask16 which, __m512* added) {
  if (a.mask_bytes == 1) {
    const __m128i bools = _mm_maskz_loadu_epi8(which, place + column);
    *added = _mm512_setzero_ps();
    return _mm_test_epi8_mask(bools, bools) & which;
  }
  *added = a.mask_bytes == 0 ? _mm512_setzero_ps() : read(place, column, a.mask_bytes == 2, which);
  return _mm512_mask_cmp_ps_mask(which, *added, _mm512_set1_ps(LOWEST), _CMP_NLT_UQ);
}

// Turns scores into probabilities, in place.
void softmax(float* scores, int64_t columns, float highest) {
  if (highest == -std::numeric_limits<float>::infinity()) {
    std::fill(scores, scores + columns, 0.0f);
    return;
  }
  const __m512 top = _mm512_set1_ps(highest);
  const __m512 never = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 total = _mm512_setzero_ps();
  for (int64_t l = 0; l < columns; l += 16) {
    const __mmask16 which = first(columns - l);
    const __m512 score = _mm512_mask_loadu_ps(never, which, scores + l);
    // Not "greater": a NaN stays one.
    const __mmask16 seen = _mm512_cmp_ps_mask(score, never, _CMP_NEQ_UQ);
    const __m512 weight = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(score, top)));
    const __m512 kept = _mm512_mask_mov_ps(weight, _mm512_cmp_ps_mask(score, score, _CMP_UNORD_Q), score);
    total = _mm512_add_ps(total, kept);
    _mm512_mask_storeu_ps(scores + l, which, kept);
  }
  const __m512 factor = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
  for (int64_t l = 0; l < columns; l += 16) {
    const __mmask16 which = first(columns - l);
    _mm512_mask_storeu_ps(scores + l, which, _mm512_mul_ps(_mm512_maskz_loadu_ps(which, scores + l), factor));
  }
}

// The keys, or the values, that a head of a row reads.
inline const char* of_head(const Attention& a, const Strided& stored, int64_t row, int64_t head) {
  const int64_t place = a.places ? a.places[row * a.step] : row;
  return stored.data + place * stored.row + head / a.shared * stored.head;
}

// Memory of this thread for so many scores.
inline float* room_for(int64_t scores) {
  static thread_local std::vector<float> buffer;
  if (static_cast<int64_t>(buffer.size()) < scores) buffer.resize(scores);
  return buffer.data();
}

// What the probabilities make of the values of the first columns.
template <int QUERIES, int PARTS>
inline void weigh(const Attention& a, int64_t row, int64_t head, int64_t token, const float* scores, int64_t stride,
                  const char* values, int64_t end) {
  const int64_t bytes = a.half ? 2 : 4;
  __m512 sums[QUERIES][PARTS];
#pragma GCC unroll 6
  for (int m = 0; m < QUERIES; m++)
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) sums[m][p] = _mm512_setzero_ps();
  for (int64_t l = 0; l < end; l++) {
    // What no query sees may be anything, and 0 times a NaN is one.
    bool seen = false;
#pragma GCC unroll 6
    for (int m = 0; m < QUERIES; m++) seen |= scores[m * stride + l] != 0.0f;
    if (!seen) continue;
    const char* value = values + l * a.values.token;
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) {
      const __m512 part = read(value, 16 * p, a.half, 0xffff);
#pragma GCC unroll 6
      for (int m = 0; m < QUERIES; m++)
        sums[m][p] = _mm512_fmadd_ps(_mm512_set1_ps(scores[m * stride + l]), part, sums[m][p]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < QUERIES; m++) {
    const int64_t at = ((row * a.tokens + token + m) * a.heads + head) * a.width;
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) write(a.result + at * bytes, 16 * p, a.half, sums[m][p], 0xffff);
  }
}

// QUERIES queries of one head from token on; PARTS vectors a head.
template <int QUERIES, int PARTS>
void attend(const Attention& a, int64_t row, int64_t head, int64_t token) {
  const int64_t stride = (a.columns + 15) / 16 * 16;
  float* scores = room_for(QUERIES * stride);
  const char *keys = of_head(a, a.keys, row, head), *values = of_head(a, a.values, row, head);
  const char* masks[QUERIES];
  __m512 query[QUERIES][PARTS];
#pragma GCC unroll 4
  for (int m = 0; m < QUERIES; m++) {
    const char* from = a.queries.data + row * a.queries.row + head * a.queries.head + (token + m) * a.queries.token;
    masks[m] = a.mask.data + row * a.mask.row + head * a.mask.head + (token + m) * a.mask.token;
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++)
      query[m][p] = _mm512_mul_ps(read(from, 16 * p, a.half, 0xffff), _mm512_set1_ps(a.scale));
  }
  float highest[QUERIES];
  std::fill(highest, highest + QUERIES, -std::numeric_limits<float>::infinity());
  int64_t end = 0;
  for (int64_t l = 0; l < a.columns; l++) {
    float added[QUERIES];
    bool seen = false;
#pragma GCC unroll 4
    for (int m = 0; m < QUERIES; m++) {
      added[m] = mask_at(a, masks[m], l);
      seen |= !forbidden(added[m]);
    }
    if (!seen) {
#pragma GCC unroll 4
      for (int m = 0; m < QUERIES; m++) scores[m * stride + l] = -std::numeric_limits<float>::infinity();
      continue;
    }
    end = l + 1;
    const char* key = keys + l * a.keys.token;
    __m512 sums[QUERIES];
#pragma GCC unroll 4
    for (int m = 0; m < QUERIES; m++) sums[m] = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) {
      const __m512 part = read(key, 16 * p, a.half, 0xffff);
#pragma GCC unroll 4
      for (int m = 0; m < QUERIES; m++) sums[m] = _mm512_fmadd_ps(query[m][p], part, sums[m]);
    }
#pragma GCC unroll 4
    for (int m = 0; m < QUERIES; m++) {
      const float score = forbidden(added[m]) ? -std::numeric_limits<float>::infinity()
                                              : _mm512_reduce_add_ps(sums[m]) + added[m];
      scores[m * stride + l] = score;
      // A NaN is not greater, and nothing is greater than one: where all scores are, it is the highest.
      if (score > highest[m] || score != score) highest[m] = score;
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < QUERIES; m++) softmax(scores + m * stride, end, highest[m]);
  weigh<QUERIES, PARTS>(a, row, head, token, scores, stride, values, end);
}

// Keys of one head, 16 columns side by side: what a query is multiplied with then needs no sum over a vector.
struct Laid {
  std::vector<float> numbers;  // [columns / 16][width][16]
  int64_t columns = 0;         // so many are there

  void reach(const Attention& a, const char* keys, int64_t end) {
    const int64_t blocks = (end + 15) / 16;
    if (static_cast<int64_t>(numbers.size()) < blocks * a.width * 16) numbers.resize(blocks * a.width * 16);
    for (; columns < blocks * 16; columns++) {
      float* to = numbers.data() + columns / 16 * a.width * 16 + columns % 16;
      alignas(64) float one[WIDEST];
      // Behind the last column there is nothing to read, and what stands there is masked.
      const bool there = columns < a.columns;
      for (int64_t d = 0; d < a.width; d += 16)
        _mm512_store_ps(one + d, there ? read(keys + columns * a.keys.token, d, a.half, 0xffff) : _mm512_setzero_ps());
      for (int64_t d = 0; d < a.width; d++) to[d * 16] = one[d];
    }
  }
};

// As attend, of more queries at a time, where there are so many that laying out the keys anew is soon made up for.
template <int QUERIES, int PARTS>
void attend_many(const Attention& a, int64_t row, int64_t head, int64_t token, Laid& laid) {
  const int64_t stride = (a.columns + 15) / 16 * 16;
  float* scores = room_for(QUERIES * stride);
  const char *keys = of_head(a, a.keys, row, head), *values = of_head(a, a.values, row, head);
  const char* masks[QUERIES];
  alignas(64) float query[QUERIES][16 * PARTS];
  for (int m = 0; m < QUERIES; m++) {
    const char* from = a.queries.data + row * a.queries.row + head * a.queries.head + (token + m) * a.queries.token;
    masks[m] = a.mask.data + row * a.mask.row + head * a.mask.head + (token + m) * a.mask.token;
    for (int p = 0; p < PARTS; p++)
      _mm512_store_ps(query[m] + 16 * p, _mm512_mul_ps(read(from, 16 * p, a.half, 0xffff), _mm512_set1_ps(a.scale)));
  }
  // Behind the last column that one of them sees nothing is read.
  int64_t end = stride;
  __m512 added[QUERIES];
  __mmask16 seen[QUERIES];
  const auto look = [&](int64_t l) {
    __mmask16 any = 0;
    for (int m = 0; m < QUERIES; m++) any |= seen[m] = masks_at(a, masks[m], l, first(a.columns - l), added + m);
    return any;
  };
  while (end > 0 && !look(end - 16)) end -= 16;
  laid.reach(a, keys, end);
  const __m512 never = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 best[QUERIES];
  __mmask16 broken[QUERIES];
  std::fill(best, best + QUERIES, never);
  std::fill(broken, broken + QUERIES, static_cast<__mmask16>(0));
  for (int64_t l = 0; l < end; l += 16) {
    if (!look(l)) {
      for (int m = 0; m < QUERIES; m++) _mm512_storeu_ps(scores + m * stride + l, never);
      continue;
    }
    const float* key = laid.numbers.data() + l * a.width;
    __m512 sums[QUERIES];
#pragma GCC unroll 6
    for (int m = 0; m < QUERIES; m++) sums[m] = _mm512_setzero_ps();
    for (int d = 0; d < 16 * PARTS; d++) {
      const __m512 part = _mm512_loadu_ps(key + 16 * d);
#pragma GCC unroll 6
      for (int m = 0; m < QUERIES; m++) sums[m] = _mm512_fmadd_ps(_mm512_set1_ps(query[m][d]), part, sums[m]);
    }
#pragma GCC unroll 6
    for (int m = 0; m < QUERIES; m++) {
      const __m512 score = _mm512_mask_add_ps(never, seen[m], sums[m], added[m]);
      _mm512_storeu_ps(scores + m * stride + l, score);
      // The second one where the first is a NaN.
      best[m] = _mm512_max_ps(score, best[m]);
      broken[m] |= _mm512_cmp_ps_mask(score, score, _CMP_UNORD_Q);
    }
  }
  for (int m = 0; m < QUERIES; m++)
    softmax(scores + m * stride, end, broken[m] ? std::numeric_limits<float>::quiet_NaN() : _mm512_reduce_max_ps(best[m]));
  weigh<QUERIES, PARTS>(a, row, head, token, scores, stride, values, std::min(end, a.columns));
}

template <int PARTS>
void all_queries(const Attention& a, int64_t row, int64_t head) {
  int64_t token = 0;
  if constexpr (PARTS <= 4)
    if (a.tokens > MANY) {
      static thread_local Laid laid;
      laid.columns = 0;
      for (; token + TOGETHER_OF_MANY <= a.tokens; token += TOGETHER_OF_MANY)
        attend_many<TOGETHER_OF_MANY, PARTS>(a, row, head, token, laid);
    }
  if constexpr (PARTS <= 4)
    for (; token + TOGETHER <= a.tokens; token += TOGETHER) attend<TOGETHER, PARTS>(a, row, head, token);
  if constexpr (PARTS <= 8)
    for (; token + 2 <= a.tokens; token += 2) attend<2, PARTS>(a, row, head, token);
  for (; token < a.tokens; token++) attend<1, PARTS>(a, row, head, token);
}

using Every = void (*)(const Attention&, int64_t, int64_t);
const Every EVERY[] = {nullptr,         all_queries<1>,  all_queries<2>,  all_queries<3>, all_queries<4>,
                       all_queries<5>,  all_queries<6>,  all_queries<7>,  all_queries<8>, all_queries<9>,
                       all_queries<10>, all_queries<11>, all_queries<12>, all_queries<13>, all_queries<14>,
                       all_queries<15>, all_queries<16>};

// A tensor [B, H, T, D], of which rows and heads may be one for all.
Strided strided(AtenTensorHandle tensor, int64_t bytes) {
  const Sizes sizes(tensor);
  require(sizes.dims == 4, "attention takes four dimensions");
  const auto step = [&](int d) { return sizes.sizes[d] == 1 ? 0 : sizes.strides[d] * bytes; };
  return {data<const char>(tensor), step(0), step(1), step(2)};
}

void require_size(const Sizes& sizes, int64_t d, int64_t wanted, bool may_be_one, const char* message) {
  require(sizes.sizes[d] == wanted || (may_be_one && sizes.sizes[d] == 1), message);
}

void set_mask(Attention& a, AtenTensorHandle mask) {
  if (!mask) return;
  a.mask_bytes = is(mask, aoti_torch_dtype_bool())       ? 1
                 : is(mask, aoti_torch_dtype_bfloat16()) ? 2
                 : is(mask, aoti_torch_dtype_float32())  ? 4
                                                         : 0;
  require(a.mask_bytes > 0, "attention takes a mask in bool, bfloat16 or float32");
  a.mask = strided(mask, a.mask_bytes);
  const Sizes sizes(mask);
  const char* message = "attention: the mask does not fit";
  require_size(sizes, 0, a.rows, true, message);
  require_size(sizes, 1, a.heads, true, message);
  require_size(sizes, 2, a.tokens, true, message);
  require_size(sizes, 3, a.columns, false, message);
  require(a.columns < 2 || sizes.strides[3] == 1, message);
}

void set_places(Attention& a, AtenTensorHandle places, int64_t there) {
  if (!places) {
    require(there == a.rows, "attention: keys and values do not fit the queries");
    return;
  }
  const Sizes sizes(places);
  require(is(places, aoti_torch_dtype_int64()) && sizes.dims == 1 && sizes.sizes[0] == a.rows,
          "attention takes one place a row, in int64");
  a.places = data<const int64_t>(places);
  a.step = sizes.strides[0];
  for (int64_t b = 0; b < a.rows; b++)
    require(0 <= a.places[b * a.step] && a.places[b * a.step] < there, "attention: a place that is not there");
}

AtenTensorHandle attention(AtenTensorHandle queries, AtenTensorHandle keys, AtenTensorHandle values,
                           AtenTensorHandle places, AtenTensorHandle mask, double scale, int64_t threads) {
  const Sizes sizes(queries), of_keys(keys), of_values(values);
  Attention a{};
  a.half = is(queries, aoti_torch_dtype_bfloat16());
  const int32_t dtype = a.half ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32();
  require(is(queries, dtype) && is(keys, dtype) && is(values, dtype), "attention takes bfloat16 or float32, all alike");
  const int64_t bytes = a.half ? 2 : 4;
  a.queries = strided(queries, bytes);
  a.keys = strided(keys, bytes);
  a.values = strided(values, bytes);
  a.rows = sizes.sizes[0], a.heads = sizes.sizes[1], a.tokens = sizes.sizes[2], a.width = sizes.sizes[3];
  a.columns = of_keys.sizes[2];
  a.scale = static_cast<float>(scale);
  require(a.width % 16 == 0 && 0 < a.width && a.width <= WIDEST, "attention takes heads of 16, 32 ... 256 numbers");
  const char* message = "attention: keys and values do not fit the queries";
  require(of_keys.sizes[1] > 0 && a.heads % of_keys.sizes[1] == 0, message);
  a.shared = a.heads / of_keys.sizes[1];
  for (const Sizes* each : {&of_keys, &of_values}) {
    require_size(*each, 0, of_keys.sizes[0], false, message);
    require_size(*each, 1, of_keys.sizes[1], false, message);
    require_size(*each, 2, a.columns, false, message);
    require_size(*each, 3, a.width, false, message);
    require(each->strides[3] == 1, "attention: the last dimension must be dense");
  }
  require(sizes.strides[3] == 1, "attention: the last dimension must be dense");
  set_places(a, places, of_keys.sizes[0]);
  set_mask(a, mask);
  const int64_t shape[] = {a.rows, a.heads, a.tokens, a.width};
  const int64_t strides[] = {a.tokens * a.heads * a.width, a.width, a.heads * a.width, 1};
  AtenTensorHandle result;
  check(aoti_torch_empty_strided(4, shape, strides, dtype, aoti_torch_device_type_cpu(), 0, &result));
  a.result = data<char>(result);
  const Every every = EVERY[a.width / 16];
  // Some ten cycles a column and vector for a query that is alone.
  const int64_t cycles = a.tokens * a.columns * (a.width / 16 * 3 + 8);
  share_out(a.rows * a.heads, cycles, threads, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++) every(a, unit / a.heads, unit % a.heads);
  });
  return result;
}

using torch::stable::Tensor;

Tensor boxed(const Tensor& queries, const Tensor& keys, const Tensor& values, std::optional<Tensor> places,
             std::optional<Tensor> mask, double scale, int64_t threads) {
  return Tensor(attention(queries.get(), keys.get(), values.get(), handle(places), handle(mask), scale, threads));
}

}  // namespace
}  // namespace bild

// What a compiled graph calls, without the dispatcher.
extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_bild_attention(
    AtenTensorHandle queries, AtenTensorHandle keys, AtenTensorHandle values, AtenTensorHandle* places,
    AtenTensorHandle* mask, double scale, int64_t threads, AtenTensorHandle* result) {
  return bild::hand_over(result, [&] {
    return bild::attention(queries, keys, values, places ? *places : nullptr, mask ? *mask : nullptr, scale, threads);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(bild, m) {
  m.def(
      "bild_attention(Tensor queries, Tensor keys, Tensor values, Tensor? places, Tensor? mask, float scale, "
      "int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bild, CPU, m) { m.impl("bild_attention", TORCH_BOX(&bild::boxed)); }
