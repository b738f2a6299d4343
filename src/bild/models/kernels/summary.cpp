// What matters most of next-token logits, by AVX512 or AVX2.
//
// bild::summary(logits) are, of each row z of the logits [..., V], the place of its highest number (the first of equals),
// 1 / Σ exp(z − max z), which is its probability, and log Σ exp z. Of a row that has a NaN, or an infinity above all others,
// the place is that of the first one and the other two are NaN.

#include <cmath>
#include <limits>

#include "common.h"

namespace bild {
namespace {

struct Logits {
  const char* data;
  int64_t count, width;
  bool half;
  int64_t* likeliest;
  float *probability, *log_total;
};

constexpr int64_t TOGETHER = 64;  // numbers of which four vectors' maxima are found side by side
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// The highest number of a row, and whether it has a NaN.
inline float highest_of(const Logits& z, const char* row, bool* broken) {
  Floats best[4];
  Lanes none[4];
  std::fill(best, best + 4, same(NEVER));
  std::fill(none, none + 4, Lanes{});
  int64_t v = 0;
  for (; v + TOGETHER <= z.width; v += TOGETHER)
    for (int n = 0; n < 4; n++) {
      const Floats some = read(row, v + 16 * n, z.half);
      // The second one where the first is a NaN.
      best[n] = most(some, best[n]);
      none[n] = either(none[n], no_number(some));
    }
  for (; v < z.width; v += 16) {
    const int64_t left = z.width - v;
    const Floats some = choose(first(left), read(row, v, z.half, left), same(NEVER));
    best[0] = most(some, best[0]);
    none[0] = either(none[0], no_number(some));
  }
  *broken = any(either(either(none[0], none[1]), either(none[2], none[3])));
  return highest(most(most(best[0], best[1]), most(best[2], best[3])));
}

float number(const Logits& z, const char* row, int64_t place) {
  if (!z.half) return reinterpret_cast<const float*>(row)[place];
  const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(row)[place]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void sum_up(const Logits& z, int64_t at) {
  const char* row = z.data + at * z.width * (z.half ? 2 : 4);
  bool broken;
  const float best = highest_of(z, row, &broken);
  int64_t place = 0;
  if (broken || !std::isfinite(best)) {
    while (place < z.width && !(broken ? std::isnan(number(z, row, place)) : number(z, row, place) == best)) place++;
    z.likeliest[at] = place;
    z.probability[at] = z.log_total[at] = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const Floats top = same(best);
  // Two sums, so that one addition does not wait for the other.
  Floats total[2] = {same(0.0f), same(0.0f)};
  int64_t found = -1;
  const auto add = [&](int64_t v, Floats some) {
    const Floats below = some - top;
    // That of anything lower than 87 is that of 87, which is nothing beside 1.
    total[v / 16 % 2] = total[v / 16 % 2] + exponential(below);
    if (found < 0 && any(not_below(first(16), below, same(0.0f)))) found = v;
  };
  int64_t v = 0;
  for (; v + 32 <= z.width; v += 32) {
    add(v, read(row, v, z.half));
    add(v + 16, read(row, v + 16, z.half));
  }
  for (; v < z.width; v += 16) {
    const int64_t left = z.width - v;
    add(v, choose(first(left), read(row, v, z.half, left), same(NEVER)));
  }
  while (number(z, row, found) != best) found++;
  const float weight = sum(total[0] + total[1]);
  z.likeliest[at] = found;
  z.probability[at] = 1.0f / weight;
  z.log_total[at] = best + std::log(weight);
}

struct Summary {
  AtenTensorHandle likeliest, probability, log_total;
};

Summary summary(AtenTensorHandle logits, int64_t threads) {
  const Sizes sizes(logits);
  Logits z{};
  z.half = is(logits, aoti_torch_dtype_bfloat16());
  require(z.half || is(logits, aoti_torch_dtype_float32()), "summary takes logits in bfloat16 or float32");
  require(sizes.dims >= 1 && sizes.sizes[sizes.dims - 1] > 0 && dense(logits), "summary takes dense logits [..., V], V > 0");
  z.data = data<const char>(logits);
  z.width = sizes.sizes[sizes.dims - 1];
  z.count = rows_of(sizes);
  std::vector<int64_t> strides(sizes.dims, 1);
  for (int64_t d = sizes.dims - 3; d >= 0; d--) strides[d] = strides[d + 1] * sizes.sizes[d + 1];
  const auto made = [&](int32_t dtype) {
    AtenTensorHandle result;
    check(aoti_torch_empty_strided(sizes.dims - 1, sizes.sizes, strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &result));
    return result;
  };
  const Summary found{made(aoti_torch_dtype_int64()), made(aoti_torch_dtype_float32()), made(aoti_torch_dtype_float32())};
  if (z.count == 0) return found;
  z.likeliest = data<int64_t>(found.likeliest);
  z.probability = data<float>(found.probability);
  z.log_total = data<float>(found.log_total);
  share_out(z.count, z.width, threads, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at++) sum_up(z, at);
  });
  return found;
}

using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> boxed(const Tensor& logits, int64_t threads) {
  const Summary found = summary(logits.get(), threads);
  return {Tensor(found.likeliest), Tensor(found.probability), Tensor(found.log_total)};
}

}  // namespace
}  // namespace bild

// What a compiled graph calls, without the dispatcher.
extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_bild_summary(
    AtenTensorHandle logits, int64_t threads, AtenTensorHandle* likeliest, AtenTensorHandle* probability,
    AtenTensorHandle* log_total) {
  return bild::hand_over(likeliest, [&] {
    const bild::Summary found = bild::summary(logits, threads);
    *probability = found.probability;
    *log_total = found.log_total;
    return found.likeliest;
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(bild, m) {
  m.def("bild_summary(Tensor logits, int threads) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bild, CPU, m) { m.impl("bild_summary", TORCH_BOX(&bild::boxed)); }
