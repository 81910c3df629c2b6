// Formats of 32, 64 and 128 weights with a scale each, and the K-quants: what a lane loads of a row.

#define NIBBLES 0x0f0f0f0fu

// Four bits to the lowest bit of four bytes.
static inline uint spread1(uint nibble) { return (nibble * 0x00204081u) & 0x01010101u; }
// Eight bits to four bytes of two.
static inline uint spread2(uint byte) {
    uint x = (byte | byte << 12) & 0x000f000fu;
    return (x | x << 6) & 0x03030303u;
}
static inline uint4 spread_bits(uint bits, uint at) {
    return (uint4)(spread1(bits >> at & 15), spread1(bits >> (at + 4) & 15), spread1(bits >> (at + 8) & 15), spread1(bits >> (at + 12) & 15));
}

// Q4_0, Q4_1, Q5_0, Q5_1: a block of 32 is an item.
typedef struct { uint4 low, high; float d, m; } item_b32;
static inline void load_q4_0(item_b32 *it, const Row *r, uint i) {
    uint4 x = ((global const uint4 *)r->p0)[i];
    it->low = x & NIBBLES;
    it->high = (x >> 4) & NIBBLES;
    it->d = half_at(r->p1 + i * 2);
}
static inline void load_q4_1(item_b32 *it, const Row *r, uint i) {
    uint4 x = ((global const uint4 *)r->p0)[i];
    it->low = x & NIBBLES;
    it->high = (x >> 4) & NIBBLES;
    it->d = half_at(r->p1 + i * 4);
    it->m = half_at(r->p1 + i * 4 + 2);
}
static inline void load_q5(item_b32 *it, const Row *r, uint i) {
    uint4 x = ((global const uint4 *)r->p0)[i];
    uint bits = ((global const uint *)r->p1)[i];
    it->low = (x & NIBBLES) | (spread_bits(bits, 0) << 4);
    it->high = ((x >> 4) & NIBBLES) | (spread_bits(bits, 16) << 4);
}
static inline void load_q5_0(item_b32 *it, const Row *r, uint i) {
    load_q5(it, r, i);
    it->d = half_at(r->p2 + i * 2);
}
static inline void load_q5_1(item_b32 *it, const Row *r, uint i) {
    load_q5(it, r, i);
    it->d = half_at(r->p2 + i * 4);
    it->m = half_at(r->p2 + i * 4 + 2);
}
static inline void load_q8_0(item_b32 *it, const Row *r, uint i) {
    it->low = ((global const uint4 *)r->p0)[2 * i];
    it->high = ((global const uint4 *)r->p0)[2 * i + 1];
    it->d = half_at(r->p1 + i * 2);
}
// 32 of a block's 128 signs.
static inline void load_q1_0(item_b32 *it, const Row *r, uint i) {
    uint bits = ((global const uint *)r->p0)[i];
    it->low = spread_bits(bits, 0);
    it->high = spread_bits(bits, 16);
    it->d = half_at(r->p1 + i / 4 * 2);
}

// Q2_0: 64 weights in order, two scales of the activations.
typedef struct { uint4 x; float d; } item_q2;
static inline void load_q2_0(item_q2 *it, const Row *r, uint i) {
    it->x = ((global const uint4 *)r->p0)[i];
    it->d = half_at(r->p1 + i * 2);
}
static inline void load_q2_0_g128(item_q2 *it, const Row *r, uint i) {
    it->x = ((global const uint4 *)r->p0)[i];
    it->d = half_at(r->p1 + i / 2 * 2);
}

// Q4_K, Q5_K: 64 weights, two sub-blocks.
typedef struct { uint4 l0, l1, h0, h1; float d, dmin; int sc0, sc1, m0, m1; } item_k;
static inline void k_head(item_k *it, global const uchar *head, uint v) {
    uint4 h = *(global const uint4 *)head;
    uint scales = v < 2 ? h.y & 0x3f3f3f3fu : (h.w & NIBBLES) | ((h.y >> 6) & 0x03030303u) << 4;
    uint mins = v < 2 ? h.z & 0x3f3f3f3fu : ((h.w >> 4) & NIBBLES) | ((h.z >> 6) & 0x03030303u) << 4;
    uint shift = (v & 1) * 16;
    it->sc0 = scales >> shift & 0xff;
    it->sc1 = scales >> (shift + 8) & 0xff;
    it->m0 = mins >> shift & 0xff;
    it->m1 = mins >> (shift + 8) & 0xff;
    it->d = half_of(h.x & 0xffff);
    it->dmin = half_of(h.x >> 16);
}
static inline void load_q4_k(item_k *it, const Row *r, uint i) {
    uint4 a = ((global const uint4 *)r->p0)[2 * i], b = ((global const uint4 *)r->p0)[2 * i + 1];
    it->l0 = a & NIBBLES;
    it->l1 = b & NIBBLES;
    it->h0 = (a >> 4) & NIBBLES;
    it->h1 = (b >> 4) & NIBBLES;
    k_head(it, r->p1 + i / 4 * 16, i & 3);
}
static inline void load_q5_k(item_k *it, const Row *r, uint i) {
    uint4 a = ((global const uint4 *)r->p0)[2 * i], b = ((global const uint4 *)r->p0)[2 * i + 1];
    global const uint4 *high = (global const uint4 *)(r->p1 + i / 4 * 32);
    uint v = i & 3;
    uint4 c = high[0] >> (2 * v), d = high[1] >> (2 * v);
    it->l0 = (a & NIBBLES) | (c & 0x01010101u) << 4;
    it->l1 = (b & NIBBLES) | (d & 0x01010101u) << 4;
    it->h0 = ((a >> 4) & NIBBLES) | ((c >> 1) & 0x01010101u) << 4;
    it->h1 = ((b >> 4) & NIBBLES) | ((d >> 1) & 0x01010101u) << 4;
    k_head(it, r->p2 + i / 4 * 16, v);
}

// Q6_K: 64 weights, 16 of each of four sub-blocks.
typedef struct { uint4 a, b, h; uint2 scales; float d; } item_q6;
#define Q6_AT(i) (((i) >> 1) * 128 + ((i) & 1) * 16)
static inline void load_q6_k(item_q6 *it, const Row *r, uint i) {
    uint g = i >> 1, half_block = i & 1;
    global const uchar *ql = r->p0 + g * 64 + half_block * 16;
    it->a = *(global const uint4 *)ql;
    it->b = *(global const uint4 *)(ql + 32);
    it->h = *(global const uint4 *)(r->p1 + g * 32 + half_block * 16);
    it->scales = *(global const uint2 *)(r->p2 + g * 8);
    it->d = half_at(r->p3 + i / 4 * 2);
}
