// Ternary formats: codes 0, 1, 2 for -1, 0, +1. A row whose blocks share one scale (FMT 1, 3, 5) is summed as integers,
// with the sum of q taken off at the end; where scales differ (2, 4), block by block.
//
// Items of a TQ2_0 or I2_S row: 16 bytes of codes, 64 weights in four planes 32 apart. Of a TQ1_0 block: three of 16 bytes,
// 80 weights in five planes each, the last with the 16 weights of qh.

#define TQ2_AT(i) (((i) >> 1) * 128 + ((i) & 1) * 16)

typedef struct { uint4 x; } item_tq2;
#define TWICE_item_tq2 1
static inline void load_tq2(item_tq2 *it, const Row *r, uint i) {
    it->x = ((global const uint4 *)r->p0)[i];
}

typedef struct { uint4 x; uint y; } item_tq1;
static inline void load_tq1(item_tq1 *it, const Row *r, uint i) {
    it->x = *(global const uint4 *)(r->p0 + i * 16);
    it->y = *(global const uint *)(r->p1 + i / 3 * 4);
}
// The digits with the power of three p of four bytes: (b * p % 256) * 3 / 256 of each.
static inline uint digits(uint x, uint p) {
    uint low = ((x & 0x00ff00ffu) * p) & 0x00ff00ffu;
    uint high = (((x >> 8) & 0x00ff00ffu) * p) & 0x00ff00ffu;
    return ((low * 3) >> 8 & 0x00ff00ffu) | ((high * 3) & 0xff00ff00u);
}
static inline uint tq1_at(uint i) {
    uint r = i % 3;
    return i / 3 * 256 + (r == 2 ? 160 : r * 16);
}
