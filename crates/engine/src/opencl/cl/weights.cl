// One weight by its place in the row: for the embedding, and for products with activations that are not quantized.

#define BYTE(p, i) ((uint)((p)[i]))
static inline uint tq2_code(const Row *r, uint e, uint flip) {
    return BYTE(r->p0, e / 128 * 32 + e % 32) >> (2 * ((e % 128 / 32) ^ flip)) & 3;
}
static inline uint tq1_code(const Row *r, uint e) {
    uint b = e / 256, i = e % 256;
    const uint powers[5] = {1, 3, 9, 27, 81};
    uint byte, n;
    if (i < 160) { byte = BYTE(r->p0, b * 48 + i % 32); n = i / 32; }
    else if (i < 240) { byte = BYTE(r->p0, b * 48 + 32 + i % 16); n = (i - 160) / 16; }
    else { byte = BYTE(r->p1, b * 4 + i % 4); n = (i - 240) / 4; }
    return (byte * powers[n] & 255) * 3 >> 8;
}
static inline float weight_tq2u(const Row *r, uint e) { return (float)((int)tq2_code(r, e, 0) - 1) * *(global const float *)r->p1; }
static inline float weight_i2s(const Row *r, uint e) { return (float)((int)tq2_code(r, e, 3) - 1) * *(global const float *)r->p1; }
static inline float weight_tq2n(const Row *r, uint e) { return (float)((int)tq2_code(r, e, 0) - 1) * half_at(r->p1 + e / 256 * 2); }
static inline float weight_tq1u(const Row *r, uint e) { return (float)((int)tq1_code(r, e) - 1) * *(global const float *)r->p2; }
static inline float weight_tq1n(const Row *r, uint e) { return (float)((int)tq1_code(r, e) - 1) * half_at(r->p2 + e / 256 * 2); }

static inline int nibble(global const uchar *p, uint e) { return BYTE(p, e / 32 * 16 + e % 16) >> (e % 32 / 16 * 4) & 15; }
static inline int fifth(global const uchar *p, uint e) { return (BYTE(p, e / 8) >> (e % 8) & 1) << 4; }
static inline float weight_q4_0(const Row *r, uint e) { return (float)(nibble(r->p0, e) - 8) * half_at(r->p1 + e / 32 * 2); }
static inline float weight_q4_1(const Row *r, uint e) {
    return (float)nibble(r->p0, e) * half_at(r->p1 + e / 32 * 4) + half_at(r->p1 + e / 32 * 4 + 2);
}
static inline float weight_q5_0(const Row *r, uint e) {
    return (float)((nibble(r->p0, e) | fifth(r->p1, e)) - 16) * half_at(r->p2 + e / 32 * 2);
}
static inline float weight_q5_1(const Row *r, uint e) {
    return (float)(nibble(r->p0, e) | fifth(r->p1, e)) * half_at(r->p2 + e / 32 * 4) + half_at(r->p2 + e / 32 * 4 + 2);
}
static inline float weight_q8_0(const Row *r, uint e) { return (float)(char)r->p0[e] * half_at(r->p1 + e / 32 * 2); }
static inline float weight_q1_0(const Row *r, uint e) {
    float d = half_at(r->p1 + e / 128 * 2);
    return BYTE(r->p0, e / 8) >> (e % 8) & 1 ? d : -d;
}
static inline float weight_q2_0(const Row *r, uint e) { return (float)((int)(BYTE(r->p0, e / 4) >> (e % 4 * 2) & 3) - 1) * half_at(r->p1 + e / 64 * 2); }
static inline float weight_q2_0_g128(const Row *r, uint e) { return (float)((int)(BYTE(r->p0, e / 4) >> (e % 4 * 2) & 3) - 1) * half_at(r->p1 + e / 128 * 2); }
static inline float k_weight(global const uchar *head, uint j, uint code) {
    global const uchar *s = head + 4;
    uint scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    uint min = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
    return half_at(head) * (float)scale * (float)code - half_at(head + 2) * (float)min;
}
static inline float weight_q4_k(const Row *r, uint e) {
    uint code = BYTE(r->p0, e / 64 * 32 + e % 32) >> (e / 32 % 2 * 4) & 15;
    return k_weight(r->p1 + e / 256 * 16, e % 256 / 32, code);
}
static inline float weight_q5_k(const Row *r, uint e) {
    uint code = BYTE(r->p0, e / 64 * 32 + e % 32) >> (e / 32 % 2 * 4) & 15;
    code |= (BYTE(r->p1, e / 256 * 32 + e % 32) >> (e % 256 / 32) & 1) << 4;
    return k_weight(r->p2 + e / 256 * 16, e % 256 / 32, code);
}
static inline float weight_q6_k(const Row *r, uint e) {
    uint low = BYTE(r->p0, e / 128 * 64 + e % 64) >> (e / 64 % 2 * 4) & 15;
    uint high = BYTE(r->p1, e / 128 * 32 + e % 32) >> (e / 32 % 4 * 2) & 3;
    return half_at(r->p3 + e / 256 * 2) * (float)(char)r->p2[e / 16] * (float)((int)(low | high << 4) - 32);
}
static inline float weight_f32(const Row *r, uint e) { return ((global const float *)r->p0)[e]; }
static inline float weight_f16(const Row *r, uint e) { return half_at(r->p0 + e * 2); }
static inline float weight_bf16(const Row *r, uint e) { return as_float((uint)((global const ushort *)r->p0)[e] << 16); }
static inline float weight_f32v(const Row *r, uint e) { return weight_f32(r, e); }
static inline float weight_f16v(const Row *r, uint e) { return weight_f16(r, e); }
static inline float weight_bf16v(const Row *r, uint e) { return weight_bf16(r, e); }

// Eight at once, where rows are whole eights.
typedef struct { float8 w; } item_8;
static inline void load_f32v(item_8 *it, const Row *r, uint i) {
    it->w = vload8(i, (global const float *)r->p0);
}
static inline void load_f16v(item_8 *it, const Row *r, uint i) {
    uint4 x = ((global const uint4 *)r->p0)[i];
    it->w = (float8)(half_of(x.x & 0xffff), half_of(x.x >> 16), half_of(x.y & 0xffff), half_of(x.y >> 16),
                     half_of(x.z & 0xffff), half_of(x.z >> 16), half_of(x.w & 0xffff), half_of(x.w >> 16));
}
static inline void load_bf16v(item_8 *it, const Row *r, uint i) {
    uint4 x = ((global const uint4 *)r->p0)[i];
    it->w = (float8)(as_float(x.x << 16), as_float(x.x & 0xffff0000u), as_float(x.y << 16), as_float(x.y & 0xffff0000u),
                     as_float(x.z << 16), as_float(x.z & 0xffff0000u), as_float(x.w << 16), as_float(x.w & 0xffff0000u));
}
static inline float acc_8(const item_8 *it, global const uchar *x, uint i, float acc) {
    float8 a = vload8(i, (global const float *)x);
    acc = fma(it->w.s0, a.s0, acc); acc = fma(it->w.s1, a.s1, acc); acc = fma(it->w.s2, a.s2, acc); acc = fma(it->w.s3, a.s3, acc);
    acc = fma(it->w.s4, a.s4, acc); acc = fma(it->w.s5, a.s5, acc); acc = fma(it->w.s6, a.s6, acc); acc = fma(it->w.s7, a.s7, acc);
    return acc;
}
