// Products by tiles (AMX): 16 rows of tokens by 16 outputs an instruction, and 64 bytes of either, eight times as many as of a
// vector. Weights packed for vectors that multiply bytes or pairs of bfloat16 lie as tiles take them.

#pragma once

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tiles.h"

namespace bild {

constexpr int64_t TILE_ROWS = 16;   // at most
constexpr int64_t TILE_BYTES = 64;  // of a row
constexpr int64_t TILED = 8;        // rows from which tiles are the faster ones

// Of eight tiles four hold sums, two tokens and two weights.
constexpr int TOKENS = 4, WEIGHTS = 6;

// Whether this process may use tiles: the processor has those of bytes and of bfloat16, and Linux, which wants to be asked,
// grants them to all threads.
inline bool has_tiles() {
  constexpr unsigned NEEDED = 1u << 22 | 1u << 24 | 1u << 25;
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  unsigned a, b, c, found;
  return __get_cpuid_count(7, 0, &a, &b, &c, &found) && (found & NEEDED) == NEEDED &&
         syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

// Whether tiles multiply so many rows of so many bytes.
inline bool fits_tiles(int64_t count, int64_t bytes) {
  static const bool has = has_tiles();
  return has && count >= TILED && bytes % TILE_BYTES == 0;
}

// So many rows in as few tiles as hold them, all of the same height: the last one may go beyond the last row.
struct Cut {
  int64_t tiles, rows, spare;
  explicit Cut(int64_t count)
      : tiles((count + TILE_ROWS - 1) / TILE_ROWS), rows((count + tiles - 1) / tiles), spare(tiles * rows - count) {}
};

// While it lives this thread has tiles, with so many rows of tokens; they would cost the system time to switch from it.
class Tiles {
 public:
  explicit Tiles(int64_t rows) {
    alignas(64) struct {
      uint8_t palette = 1, rest[15] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; tile++) {
      config.bytes[tile] = TILE_BYTES;
      config.rows[tile] = static_cast<uint8_t>(tile < WEIGHTS ? rows : TILE_BYTES / 4);
    }
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~Tiles() { asm volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
};

template <int TILE>
void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
}

//   stride: bytes from one row to the next.
template <int TILE>
void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(TILE), "r"(from), "r"(stride) : "memory");
}

template <int TILE>
void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(TILE), "r"(to), "r"(stride) : "memory");
}

// Signed tokens by unsigned weights, in int32.
struct OfBytes {
  template <int SUMS, int A, int B>
  static void add() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(A), "i"(B));
  }
};

// bfloat16, in float32.
struct OfHalves {
  template <int SUMS, int A, int B>
  static void add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(A), "i"(B));
  }
};

template <class Work, int... N>
void each(Work work, std::integer_sequence<int, N...>) {
  (work.template operator()<N>(), ...);
}

// Sums of some tiles of rows by some units of outputs: [TILES · 16][2 · UNITS][16].
template <int TILES, int UNITS>
struct Sums {
  static constexpr int VECTORS = 2 * UNITS;
  static_assert(TILES * VECTORS <= TOKENS);
  alignas(64) int32_t bits[TILES * TILE_ROWS][VECTORS][16];

  //   rows: of a tile; some of the last one may be nobody's.
  //   stride: bytes from one row of the tokens to the next; bytes: of each that are multiplied.
  //   next: bytes from one unit of the weights to the next.
  //   fetch: whether these weights are read for the first time.
  template <class Product>
  void fill(const void* tokens, int64_t rows, int64_t stride, int64_t bytes, const void* weights, int64_t next, bool fetch) {
    const auto each_tile = [](auto work) { each(work, std::make_integer_sequence<int, TILES>()); };
    const auto each_vector = [](auto work) { each(work, std::make_integer_sequence<int, VECTORS>()); };
    const char *token = static_cast<const char*>(tokens), *weight = static_cast<const char*>(weights);
    each_tile([&]<int T>() { each_vector([&]<int V>() { zero_tile<T * VECTORS + V>(); }); });
    for (const char* end = token + bytes; token < end; token += TILE_BYTES, weight += TILE_BYTES * UNIT) {
      if (fetch)
        for (int64_t at = 0; at < UNITS * TILE_BYTES * UNIT; at += VECTOR)
          _mm_prefetch(weight + at / (TILE_BYTES * UNIT) * next + at % (TILE_BYTES * UNIT) + 2 * AHEAD, _MM_HINT_T0);
      each_tile([&]<int T>() { load_tile<TOKENS + T>(token + T * rows * stride, stride); });
      each_vector([&]<int V>() {
        load_tile<WEIGHTS + V % 2>(weight + V / 2 * next + V % 2 * VECTOR, 2 * VECTOR);
        each_tile([&]<int T>() { Product::template add<T * VECTORS + V, TOKENS + T, WEIGHTS + V % 2>(); });
      });
    }
    each_tile([&]<int T>() {
      each_vector([&]<int V>() { store_tile<T * VECTORS + V>(bits[T * rows][V], sizeof bits[0]); });
    });
  }
};

// As multiply_all of tiles.h, by Tile::tiles<TILES, UNITS> on rows that go on behind the last one as Cut says.
template <class Tile, class Product>
void multiply_all_tiled(const Product& p, int64_t bytes, int64_t threads) {
  const auto some = [&p](int64_t unit, int64_t end) {
    const Cut cut(p.count);
    const Tiles configured(cut.rows);
    while (unit < end) {
      const bool two = unit + 1 < end && cut.tiles == 1;
      for (int64_t tile = 0; tile < cut.tiles; tile += 2) {
        const auto block = two                    ? Tile::template tiles<1, 2>
                           : tile + 1 < cut.tiles ? Tile::template tiles<2, 1>
                                                  : Tile::template tiles<1, 1>;
        block(p, tile * cut.rows, cut.rows, unit);
      }
      unit += two ? 2 : 1;
    }
  };
  share_out(units_of(p.outputs), bytes * std::max<int64_t>(2, p.count / 8) / MULTIPLIED, threads, some);
}

}  // namespace bild
