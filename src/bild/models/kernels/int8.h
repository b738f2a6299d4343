// How int8 weights are packed: [outputs / 32][inputs / 4][32][4], in steps of four inputs of a unit.
//
// VNNI multiplies unsigned by signed numbers: 128 is added to weights, which sums of the rounded tokens take out again.
//
// AVX2 adds products in 16 bits, and to widen those sums takes half as long as to multiply. So two steps are added up
// before, wherever no sum can leave 16 bits: where the four weights of an output that meet there are at most 258
// together, for 258 · 127 is 32766. The steps of each piece of a unit stand in an order in which nearly all go in such
// pairs. The few that can go with no other stand alone, behind them. Which step is where is said by 64 bytes in front
// of the piece: [outputs / 32][pieces][64 + steps · 128].

#pragma once

#include "rounding.h"

namespace bild {

constexpr int64_t STEP = 4 * UNIT;    // bytes
constexpr int64_t STEPS = PIECE / 4;  // of a piece, or fewer of the last one
constexpr int TOGETHER = 258;         // magnitudes that may meet
constexpr uint8_t SINGLE = 128;        // is added to the number of a step that stands alone
#ifdef BILD_VNNI
constexpr int64_t ORDER = 0;
#else
constexpr int64_t ORDER = STEPS;  // bytes in front of a piece
#endif

inline int64_t bytes_of_unit(int64_t inputs) { return inputs * UNIT + pieces_of(inputs) * ORDER; }

}  // namespace bild
