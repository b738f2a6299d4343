// Attention of queries over keys and values that lie row by row, by AVX512 or AVX2.
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

// The lowest finite numbers stand for "forbidden" as well: e^x of them is 0 beside any other.
constexpr float LOWEST = -1e30f;

// Of 16 columns, or as many as are left, which are not forbidden, and what is added to their scores.
inline Lanes masks_at(const Attention& a, const char* place, int64_t column, int64_t left, Floats* added) {
  if (a.mask_bytes == 1) {
    *added = same(0.0f);
    return true_bytes(place + column, left);
  }
  *added = a.mask_bytes == 0 ? same(0.0f) : read(place, column, a.mask_bytes == 2, left);
  return not_below(first(left), *added, same(LOWEST));
}

// Turns scores into probabilities, in place.
void softmax(float* scores, int64_t columns, float highest) {
  if (highest == -std::numeric_limits<float>::infinity()) {
    std::fill(scores, scores + columns, 0.0f);
    return;
  }
  const Floats top = same(highest), none = same(0.0f);
  const Floats never = same(-std::numeric_limits<float>::infinity());
  Floats total = none;
  for (int64_t l = 0; l < columns; l += 16) {
    const int64_t left = columns - l;
    const Floats score = choose(first(left), load_some(scores + l, left), never);
    // Not "greater": a NaN stays one.
    const Floats weight = choose(differ(score, never), exponential(score - top), none);
    const Floats kept = choose(no_number(score), score, weight);
    total = total + kept;
    store_some(scores + l, kept, left);
  }
  const Floats factor = same(1.0f / sum(total));
  for (int64_t l = 0; l < columns; l += 16)
    store_some(scores + l, load_some(scores + l, columns - l) * factor, columns - l);
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
  Floats sums[QUERIES][PARTS];
#pragma GCC unroll 6
  for (int m = 0; m < QUERIES; m++)
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) sums[m][p] = same(0.0f);
  for (int64_t l = 0; l < end; l++) {
    // What no query sees may be anything, and 0 times a NaN is one.
    bool seen = false;
#pragma GCC unroll 6
    for (int m = 0; m < QUERIES; m++) seen |= scores[m * stride + l] != 0.0f;
    if (!seen) continue;
    const char* value = values + l * a.values.token;
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) {
      const Floats part = read(value, 16 * p, a.half);
#pragma GCC unroll 6
      for (int m = 0; m < QUERIES; m++)
        sums[m][p] = multiply_add(same(scores[m * stride + l]), part, sums[m][p]);
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < QUERIES; m++) {
    const int64_t at = ((row * a.tokens + token + m) * a.heads + head) * a.width;
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) write(a.result + at * bytes, 16 * p, a.half, sums[m][p]);
  }
}

// Products of queries with a key: of numbers that were made wider before, or of pairs of bfloat16 as they are.
template <int QUERIES, int PARTS>
struct Wide {
  Floats query[QUERIES][PARTS];
  bool half;

  Wide(const Attention& a, const char* const* from) : half(a.half) {
    for (int m = 0; m < QUERIES; m++)
      for (int p = 0; p < PARTS; p++) query[m][p] = read(from[m], 16 * p, half);
  }
  void multiply(const char* key, Floats* sums) const {
#pragma GCC unroll 4
    for (int m = 0; m < QUERIES; m++) sums[m] = same(0.0f);
#pragma GCC unroll 16
    for (int p = 0; p < PARTS; p++) {
      const Floats part = read(key, 16 * p, half);
#pragma GCC unroll 4
      for (int m = 0; m < QUERIES; m++) sums[m] = multiply_add(query[m][p], part, sums[m]);
    }
  }
};

template <int QUERIES, int PARTS>
struct Pairs {
  Bytes query[QUERIES][PARTS / 2];

  Pairs(const Attention&, const char* const* from) {
    for (int m = 0; m < QUERIES; m++)
      for (int p = 0; p < PARTS / 2; p++) query[m][p] = load_bytes(from[m] + 64 * p);
  }
  void multiply(const char* key, Floats* sums) const {
#pragma GCC unroll 4
    for (int m = 0; m < QUERIES; m++) sums[m] = same(0.0f);
#pragma GCC unroll 8
    for (int p = 0; p < PARTS / 2; p++) {
      const Bytes part = load_bytes(key + 64 * p);
#pragma GCC unroll 4
      for (int m = 0; m < QUERIES; m++) sums[m] = add_pairs(sums[m], query[m][p], part);
    }
  }
};

// Keys and values take longer to come from memory than to be multiplied, and their runs are too short for the processor to
// foresee.
template <int PARTS>
inline void fetch(const Attention& a, const char* column) {
  for (int64_t at = 0; at < 16 * PARTS * (a.half ? 2 : 4); at += 64) __builtin_prefetch(column + at);
}

// QUERIES queries of one head from token on; PARTS vectors a head.
template <int QUERIES, int PARTS, template <int, int> class Products>
void attend(const Attention& a, int64_t row, int64_t head, int64_t token) {
  const int64_t stride = (a.columns + 15) / 16 * 16;
  float* scores = room_for(QUERIES * stride);
  const char *keys = of_head(a, a.keys, row, head), *values = of_head(a, a.values, row, head);
  const char* next = keys + (head % a.shared == a.shared - 1 ? a.keys.head : 0);
  const char *queries[QUERIES], *masks[QUERIES];
  for (int m = 0; m < QUERIES; m++) {
    queries[m] = a.queries.data + row * a.queries.row + head * a.queries.head + (token + m) * a.queries.token;
    masks[m] = a.mask.data + row * a.mask.row + head * a.mask.head + (token + m) * a.mask.token;
  }
  const Products<QUERIES, PARTS> products(a, queries);
  const Floats scale = same(a.scale), never = same(-std::numeric_limits<float>::infinity());
  Floats best[QUERIES], added[QUERIES];
  Lanes seen[QUERIES], broken[QUERIES];
  std::fill(best, best + QUERIES, never);
  std::fill(broken, broken + QUERIES, Lanes{});
  int64_t end = 0;
  for (int64_t l = 0; l < a.columns; l += 16) {
    Lanes all{};
    for (int m = 0; m < QUERIES; m++) all = either(all, seen[m] = masks_at(a, masks[m], l, a.columns - l, added + m));
    // Behind the last of these that one of them sees nothing is read.
    const int64_t count = behind(all);
    if (count == 0) {
      for (int m = 0; m < QUERIES; m++) store(scores + m * stride + l, never);
      continue;
    }
    end = l + count;
    Floats sums[QUERIES][16];
    for (int64_t c = 0; c < count; c++) {
      Floats one[QUERIES];
      products.multiply(keys + (l + c) * a.keys.token, one);
      // What is read next: of these columns the values, and the next head's keys.
      fetch<PARTS>(a, values + (l + c) * a.values.token);
      fetch<PARTS>(a, next + (l + c) * a.keys.token);
#pragma GCC unroll 4
      for (int m = 0; m < QUERIES; m++) sums[m][c] = one[m];
    }
    for (int m = 0; m < QUERIES; m++) {
      std::fill(sums[m] + count, sums[m] + 16, same(0.0f));
      const Floats score = choose(seen[m], multiply_add(sums_of(sums[m]), scale, added[m]), never);
      store(scores + m * stride + l, score);
      // The second one where the first is a NaN.
      best[m] = most(score, best[m]);
      broken[m] = either(broken[m], no_number(score));
    }
  }
  for (int m = 0; m < QUERIES; m++)
    softmax(scores + m * stride, end, any(broken[m]) ? std::numeric_limits<float>::quiet_NaN() : highest(best[m]));
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
        store(one + d, there ? read(keys + columns * a.keys.token, d, a.half) : same(0.0f));
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
      store(query[m] + 16 * p, read(from, 16 * p, a.half) * same(a.scale));
  }
  // Behind the last column that one of them sees nothing is read.
  int64_t end = stride;
  Floats added[QUERIES];
  Lanes seen[QUERIES];
  const auto look = [&](int64_t l) {
    Lanes all{};
    for (int m = 0; m < QUERIES; m++) all = either(all, seen[m] = masks_at(a, masks[m], l, a.columns - l, added + m));
    return any(all);
  };
  while (end > 0 && !look(end - 16)) end -= 16;
  laid.reach(a, keys, end);
  const Floats never = same(-std::numeric_limits<float>::infinity());
  Floats best[QUERIES];
  Lanes broken[QUERIES];
  std::fill(best, best + QUERIES, never);
  std::fill(broken, broken + QUERIES, Lanes{});
  for (int64_t l = 0; l < end; l += 16) {
    if (!look(l)) {
      for (int m = 0; m < QUERIES; m++) store(scores + m * stride + l, never);
      continue;
    }
    const float* key = laid.numbers.data() + l * a.width;
    Floats sums[QUERIES];
#pragma GCC unroll 6
    for (int m = 0; m < QUERIES; m++) sums[m] = same(0.0f);
    for (int d = 0; d < 16 * PARTS; d++) {
      const Floats part = load(key + 16 * d);
#pragma GCC unroll 6
      for (int m = 0; m < QUERIES; m++) sums[m] = multiply_add(same(query[m][d]), part, sums[m]);
    }
#pragma GCC unroll 6
    for (int m = 0; m < QUERIES; m++) {
      const Floats score = choose(seen[m], sums[m] + added[m], never);
      store(scores + m * stride + l, score);
      // The second one where the first is a NaN.
      best[m] = most(score, best[m]);
      broken[m] = either(broken[m], no_number(score));
    }
  }
  for (int m = 0; m < QUERIES; m++)
    softmax(scores + m * stride, end, any(broken[m]) ? std::numeric_limits<float>::quiet_NaN() : highest(best[m]));
  weigh<QUERIES, PARTS>(a, row, head, token, scores, stride, values, std::min(end, a.columns));
}

// Those from token on, as many together as registers hold.
template <int PARTS, template <int, int> class Products>
void some_queries(const Attention& a, int64_t row, int64_t head, int64_t token) {
  if constexpr (PARTS <= 4)
    for (; token + TOGETHER <= a.tokens; token += TOGETHER) attend<TOGETHER, PARTS, Products>(a, row, head, token);
  if constexpr (PARTS <= 8)
    for (; token + 2 <= a.tokens; token += 2) attend<2, PARTS, Products>(a, row, head, token);
  for (; token < a.tokens; token++) attend<1, PARTS, Products>(a, row, head, token);
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
  if constexpr (MULTIPLIES_PAIRS && PARTS % 2 == 0 && PARTS <= 8)
    if (a.half) return some_queries<PARTS, Pairs>(a, row, head, token);
  some_queries<PARTS, Wide>(a, row, head, token);
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
