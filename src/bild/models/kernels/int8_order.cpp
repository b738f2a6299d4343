// The order in which the steps of int8 weights are packed for AVX2 (int8.h).
//
// bild::int8_order(weight) says, for each unit of 32 outputs and each step in turn, which one of its piece that is. The
// step that can go with the fewest others chooses first, and takes of them the one that has the fewest left: of weights
// that are normally distributed none stays alone.

#include <bit>

#include "int8.h"

namespace bild {
namespace {

using Set = uint64_t;  // of the steps of a piece
constexpr int MOST_STEPS = 64;
static_assert(STEPS <= MOST_STEPS);

inline Set only(int step) { return Set{1} << step; }

// Of one step, what the weights above zero of the twos of inputs of all outputs are together, and those below.
struct Twos {
  int16_t together[4 * UNIT];
};

Twos twos_of(const int8_t* weight, int64_t inputs) {
  Twos found;
  int16_t* next = found.together;
  for (int64_t o = 0; o < UNIT; o++, weight += inputs)
    for (int64_t k = 0; k < 4; k += 2) {
      *next++ = std::max<int>(weight[k], 0) + std::max<int>(weight[k + 1], 0);
      *next++ = std::max<int>(-weight[k], 0) + std::max<int>(-weight[k + 1], 0);
    }
  return found;
}

bool can_meet(const Twos& one, const Twos& other) {
  int16_t most = 0;
  for (int64_t i = 0; i < 4 * UNIT; i++) most = std::max<int16_t>(most, one.together[i] + other.together[i]);
  return most <= TOGETHER;
}

// The one of some steps that can go with the fewest of those left.
int scarcest(Set some, const Set* partners, Set left) {
  int found = 0, fewest = STEPS;
  for (; some; some &= some - 1) {
    const int step = std::countr_zero(some), choices = std::popcount(partners[step] & left);
    if (choices < fewest) {
      fewest = choices;
      found = step;
    }
  }
  return found;
}

void order_piece(const int8_t* weight, int64_t inputs, int64_t steps, uint8_t* to) {
  Twos twos[STEPS];
  Set partners[STEPS] = {};
  for (int64_t step = 0; step < steps; step++) {
    twos[step] = twos_of(weight + 4 * step, inputs);
    for (int64_t other = 0; other < step; other++)
      if (can_meet(twos[step], twos[other])) {
        partners[step] |= only(other);
        partners[other] |= only(step);
      }
  }
  uint8_t* end = to + steps;
  for (Set left = ~Set{0} >> (MOST_STEPS - steps); left;) {
    const int one = scarcest(left, partners, left);
    left &= ~only(one);
    const Set partners_left = partners[one] & left;
    if (!partners_left) {
      *--end = SINGLE + one;
      continue;
    }
    const int other = scarcest(partners_left, partners, left);
    left &= ~only(other);
    *to++ = one;
    *to++ = other;
  }
}

AtenTensorHandle int8_order(AtenTensorHandle weight, int64_t threads) {
  const Sizes sizes(weight);
  require(is(weight, aoti_torch_dtype_int8()) && sizes.dims == 2 && sizes.sizes[0] % UNIT == 0 &&
              sizes.sizes[1] % 32 == 0 && dense(weight),
          "int8_order takes a dense int8 weight of whole units");
  const int64_t inputs = sizes.sizes[1], steps = inputs / 4;
  const int64_t shape[] = {sizes.sizes[0] / UNIT, steps}, strides[] = {steps, 1};
  const int32_t bytes = aoti_torch_dtype_uint8(), cpu = aoti_torch_device_type_cpu();
  AtenTensorHandle result;
  check(aoti_torch_empty_strided(2, shape, strides, bytes, cpu, 0, &result));
  if (shape[0] * steps == 0) return result;
  const auto* from = data<const int8_t>(weight);
  auto* to = data<uint8_t>(result);
  share_out(shape[0], steps * 500, threads, [=](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; unit++)
      for (int64_t first = 0; first < steps; first += STEPS)
        order_piece(from + unit * UNIT * inputs + 4 * first, inputs, std::min(STEPS, steps - first),
                    to + unit * steps + first);
  });
  return result;
}

using torch::stable::Tensor;

Tensor boxed_order(const Tensor& weight, int64_t threads) { return Tensor(int8_order(weight.get(), threads)); }

}  // namespace
}  // namespace bild

STABLE_TORCH_LIBRARY_FRAGMENT(bild, m) { m.def("bild_int8_order(Tensor weight, int threads) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(bild, CPU, m) { m.impl("bild_int8_order", TORCH_BOX(&bild::boxed_order)); }
