// Activations of feed-forward layers, by AVX512 or AVX2.
//
// bild::activation(states, first, factor, width, kind) is, of each row, f(x) of the numbers x from column first on, times those
// from column factor on where that is not negative; so many numbers, computed in float32 and rounded once. f is x σ(2 u) with
// u = √(2 / π) (x + 0.044715 x³), which is GELU's approximation by a hyperbolic tangent, or x σ(x), which is SiLU.

#include "common.h"

namespace bild {
namespace {

enum Kind : int64_t { GELU, SILU };

// 1 / (1 + e⁻ˣ).
inline Floats logistic(Floats x) {
  const Floats none = same(0.0f), one = same(1.0f), lowest = same(-87.0f);
  const Floats below = least(x, none - x);
  const Floats small = choose(not_below(first(16), below, lowest), exponential(below), none);
  return choose(not_below(first(16), x, none), one, small) / (one + small);
}

template <Kind KIND>
inline Floats activated(Floats x) {
  if constexpr (KIND == SILU) return x * logistic(x);
  const Floats inner = x * multiply_add(x * x, same(0.044715f), same(1.0f));
  return x * logistic(inner * same(1.5957691216f));
}

struct Rows {
  const char *from, *factor;  // factor: null where there is none
  char* to;
  int64_t width, wide;  // numbers of a row of the result, bytes of one
  bool half;
};

template <Kind KIND>
void activate(const Rows& rows, const Sizes& sizes, int64_t row, int64_t end) {
  for (; row < end; row++) {
    const int64_t offset = sizes.offset(row) * rows.wide;
    char* to = rows.to + row * rows.width * rows.wide;
    for (int64_t k = 0; k < rows.width; k += 16) {
      const int64_t left = rows.width - k;
      Floats value = activated<KIND>(read(rows.from + offset, k, rows.half, left));
      if (rows.factor) value = value * read(rows.factor + offset, k, rows.half, left);
      write(to, k, rows.half, value, left);
    }
  }
}

AtenTensorHandle activation(AtenTensorHandle states, int64_t first, int64_t factor, int64_t width, int64_t kind,
                            int64_t threads) {
  const Sizes sizes(states);
  Rows rows{};
  rows.half = is(states, aoti_torch_dtype_bfloat16());
  require(rows.half || is(states, aoti_torch_dtype_float32()), "activation takes bfloat16 or float32");
  require(kind == GELU || kind == SILU, "activation knows GELU (0) and SiLU (1)");
  require(sizes.dims >= 1 && width > 0 && first >= 0, "activation takes states [..., columns]");
  const int64_t columns = sizes.sizes[sizes.dims - 1];
  require(std::max(first, factor) + width <= columns, "activation: the columns are not there");
  require(sizes.strides[sizes.dims - 1] == 1, "the last dimension of states must be dense");
  rows.wide = rows.half ? 2 : 4;
  rows.width = width;
  const int32_t dtype = rows.half ? aoti_torch_dtype_bfloat16() : aoti_torch_dtype_float32();
  AtenTensorHandle result = empty(sizes, width, dtype);
  const int64_t count = rows_of(sizes);
  if (count == 0) return result;
  rows.from = data<const char>(states) + first * rows.wide;
  rows.factor = factor < 0 ? nullptr : data<const char>(states) + factor * rows.wide;
  rows.to = data<char>(result);
  // Some three cycles a number.
  share_out(count, 3 * width, threads, [&](int64_t row, int64_t end) {
    kind == GELU ? activate<GELU>(rows, sizes, row, end) : activate<SILU>(rows, sizes, row, end);
  });
  return result;
}

using torch::stable::Tensor;

Tensor boxed(const Tensor& states, int64_t first, int64_t factor, int64_t width, int64_t kind, int64_t threads) {
  return Tensor(activation(states.get(), first, factor, width, kind, threads));
}

}  // namespace
}  // namespace bild

// What a compiled graph calls, without the dispatcher.
extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_bild_activation(
    AtenTensorHandle states, int64_t first, int64_t factor, int64_t width, int64_t kind, int64_t threads,
    AtenTensorHandle* result) {
  return bild::hand_over(result, [&] { return bild::activation(states, first, factor, width, kind, threads); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(bild, m) {
  m.def("bild_activation(Tensor states, int first, int factor, int width, int kind, int threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bild, CPU, m) { m.impl("bild_activation", TORCH_BOX(&bild::boxed)); }
