// How 4-bit weights are packed, as one stream of bytes: [outputs / 32][inputs / 32][640].
//
// A weight is d · q + m, q in 0 … 15, with d and m of its group: 32 inputs of one output. A group of 32 outputs begins
// with their d, then their m, as float16, and ends with eight steps of 4 inputs; a step is 64 bytes that hold the first
// 16 outputs in their lower four bits and the other 16 in their upper ones.

#pragma once

#include "tiles.h"

namespace bild {

constexpr int64_t GROUP = 32;  // inputs
constexpr int64_t STEPS = GROUP / 4;
constexpr int64_t LEVELS = 15;
constexpr int64_t ENDS = 2 * VECTOR;                // bytes of d and m of a group of a unit
constexpr int64_t BYTES = ENDS + STEPS * VECTOR;    // of all of it

}  // namespace bild
