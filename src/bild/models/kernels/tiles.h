// How a product with packed weights is cut: some rows by some units of outputs at a time, all sums in registers.

#pragma once

#include <array>
#include <utility>

#include "common.h"

namespace bild {

constexpr int64_t UNIT = 32;     // outputs packed together
constexpr int64_t AHEAD = 2048;  // bytes fetched before they are needed

inline int64_t units_of(int64_t outputs) { return (outputs + UNIT - 1) / UNIT; }

// Tile::block<ROWS, UNITS> for 1, 2, … ROWS: does ROWS rows by UNITS units.
template <class Tile, class Product, int UNITS, size_t... ROWS>
constexpr auto blocks(std::index_sequence<ROWS...>) {
  return std::array<void (*)(const Product&, int64_t, int64_t), sizeof...(ROWS)>{
      Tile::template block<ROWS + 1, UNITS>...};
}

// All rows by the units from one to below another. A tile says how many rows fill the registers: Tile::MOST_ROWS where
// each has two vectors of sums, Tile::FOUR_VECTORS where each has four.
template <class Tile, class Product>
void multiply(const Product& p, int64_t unit, int64_t end) {
  static constexpr auto two_units = blocks<Tile, Product, 2>(std::make_index_sequence<Tile::FOUR_VECTORS>());
  static constexpr auto one_unit = blocks<Tile, Product, 1>(std::make_index_sequence<Tile::MOST_ROWS>());
  const int64_t cuts = (p.count + Tile::MOST_ROWS - 1) / Tile::MOST_ROWS;
  while (unit < end) {
    const bool two = unit + 1 < end && p.count <= Tile::FOUR_VECTORS;
    for (int64_t c = 0, row = 0; c < cuts; c++) {
      const int64_t rows = (p.count - row) / (cuts - c);
      (two ? two_units[rows - 1] : one_unit[rows - 1])(p, row, unit);
      row += rows;
    }
    unit += two ? 2 : 1;
  }
}

// The whole product, shared out among threads.
//   bytes: of one unit's weights. A unit is bound by reading them or by multiplying them.
template <class Tile, class Product>
void multiply_all(const Product& p, int64_t bytes, int64_t threads) {
  const int64_t cycles = bytes * std::max<int64_t>(2, p.count) / MULTIPLIED;
  share_out(units_of(p.outputs), cycles, threads,
            [&p](int64_t begin, int64_t end) { multiply<Tile>(p, begin, end); });
}

}  // namespace bild

// A product of states and one packed tensor as a torch operator bild::bild_NAME, and as what a compiled graph calls without
// the dispatcher. Stands outside of all namespaces, behind a function bild::NAME(states, weight, bias, outputs, threads).
#define BILD_LINEAR_OPERATOR(NAME)                                                                                      \
  namespace bild {                                                                                                      \
  namespace {                                                                                                           \
  torch::stable::Tensor boxed(const torch::stable::Tensor& states, const torch::stable::Tensor& weight,                 \
                              std::optional<torch::stable::Tensor> bias, int64_t outputs, int64_t threads) {            \
    return torch::stable::Tensor(NAME(states.get(), weight.get(), handle(bias), outputs, threads));                     \
  }                                                                                                                     \
  }                                                                                                                     \
  }                                                                                                                     \
  extern "C" __attribute__((visibility("default"))) AOTITorchError aoti_torch_cpu_bild_##NAME(                          \
      AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle* bias, int64_t outputs, int64_t threads,       \
      AtenTensorHandle* result) {                                                                                       \
    return bild::hand_over(result, [&] { return bild::NAME(states, weight, bias ? *bias : nullptr, outputs, threads); }); \
  }                                                                                                                     \
  STABLE_TORCH_LIBRARY_FRAGMENT(bild, m) {                                                                              \
    m.def("bild_" #NAME "(Tensor states, Tensor weight, Tensor? bias, int outputs, int threads) -> Tensor");            \
  }                                                                                                                     \
  STABLE_TORCH_LIBRARY_IMPL(bild, CPU, m) { m.impl("bild_" #NAME, TORCH_BOX(&bild::boxed)); }
