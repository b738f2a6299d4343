// How a product with packed weights is cut: some rows by some units of outputs at a time, all sums in registers.

#pragma once

#include "common.h"

namespace bild {

constexpr int64_t UNIT = 32;         // outputs packed together
constexpr int64_t MOST_ROWS = 12;    // rows times two vectors of sums fill the registers
constexpr int64_t FOUR_VECTORS = 6;  // rows up to which four vectors of sums do
constexpr int64_t AHEAD = 2048;      // bytes fetched before they are needed

inline int64_t units_of(int64_t outputs) { return (outputs + UNIT - 1) / UNIT; }

// Rows of [..., inputs].
inline int64_t rows_of(const Sizes& states) {
  int64_t rows = 1;
  for (int64_t d = 0; d < states.dims - 1; d++) rows *= states.sizes[d];
  return rows;
}

// All rows by the units from one to below another; Tile::block<ROWS, UNITS> does ROWS rows by UNITS units.
template <class Tile, class Product>
void multiply(const Product& p, int64_t unit, int64_t end) {
  using Block = void (*)(const Product&, int64_t, int64_t);
  static constexpr Block two_units[] = {
      nullptr,
      Tile::template block<1, 2>, Tile::template block<2, 2>, Tile::template block<3, 2>,
      Tile::template block<4, 2>, Tile::template block<5, 2>, Tile::template block<6, 2>,
  };
  static constexpr Block one_unit[] = {
      nullptr,
      Tile::template block<1, 1>, Tile::template block<2, 1>, Tile::template block<3, 1>, Tile::template block<4, 1>,
      Tile::template block<5, 1>, Tile::template block<6, 1>, Tile::template block<7, 1>, Tile::template block<8, 1>,
      Tile::template block<9, 1>, Tile::template block<10, 1>, Tile::template block<11, 1>, Tile::template block<12, 1>,
  };
  const int64_t blocks = (p.count + MOST_ROWS - 1) / MOST_ROWS;
  while (unit < end) {
    const bool two = unit + 1 < end && p.count <= FOUR_VECTORS;
    for (int64_t b = 0, row = 0; b < blocks; b++) {
      const int64_t rows = (p.count - row) / (blocks - b);
      (two ? two_units[rows] : one_unit[rows])(p, row, unit);
      row += rows;
    }
    unit += two ? 2 : 1;
  }
}

// The whole product, shared out among threads.
//   bytes: of one unit's weights. A unit is bound by reading them or by multiplying them.
template <class Tile, class Product>
void multiply_all(const Product& p, int64_t bytes, int64_t threads) {
  const int64_t cycles = bytes * std::max<int64_t>(2, p.count) / VECTOR;
  share_out(units_of(p.outputs), cycles, threads,
            [&p](int64_t begin, int64_t end) { multiply<Tile>(p, begin, end); });
}

}  // namespace bild
