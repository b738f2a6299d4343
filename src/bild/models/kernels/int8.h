// How int8 weights are packed: [outputs / 32][inputs / 4][32][4], in steps of four inputs of a unit.
//
// VNNI multiplies unsigned by signed numbers: 128 is added to weights, which sums of the rounded tokens take out again.
//
// AVX2 multiplies likewise, but 128 is added to tokens, which sums of the weights take out again, and weights have seven
// bits, because it adds products in 16: with at most 64 of them, and 255 of a token, two always fit. To widen those sums
// takes half as long as to multiply. So two steps are added up before, wherever no sum can leave 16 bits: where those
// above zero of the four weights of an output that meet there are at most 128 together, and those below as well, for
// 128 · 255 is 32640. The steps of each piece of a unit stand in an order in which nearly all go in such pairs. The few
// that can go with no other stand alone, behind them. In front of the piece 32 bytes say which step is where, and 32
// numbers of 32 bits what each output owes for its tokens: [outputs / 32][pieces][32 + 128 + steps · 128].

#pragma once

#include "rounding.h"

namespace bild {

constexpr int64_t STEP = 4 * UNIT;    // bytes
constexpr int64_t STEPS = PIECE / 4;  // of a piece, or fewer of the last one
constexpr int TOGETHER = 128;         // weights of one sign that may meet, summed up
constexpr uint8_t SINGLE = 128;       // is added to the number of a step that stands alone
#ifdef BILD_VNNI
constexpr int64_t AHEAD_OF_PIECE = 0;
#else
constexpr int64_t AHEAD_OF_PIECE = STEPS + 4 * UNIT;  // bytes
#endif

inline int64_t bytes_of_unit(int64_t inputs) { return inputs * UNIT + pieces_of(inputs) * AHEAD_OF_PIECE; }

}  // namespace bild
