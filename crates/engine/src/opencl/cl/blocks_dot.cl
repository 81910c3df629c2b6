// Their products with a record at AS; `acc` is what the lane has so far.

#define SUMS16 ((AS const short *)(rec + padded))
#define SCALES ((AS const float *)(rec + padded + padded / 8))
#define SUMS32 ((AS const int *)(rec + padded + padded / 8 + padded / 8))
#define Q4(at) (*(AS const uint4 *)(rec + (at)))

static inline int CAT(dot32_, AS)(const item_b32 *it, AS const uchar *rec, uint i) {
    return dot16(it->high, Q4(i * 32 + 16), dot16(it->low, Q4(i * 32), 0));
}
static inline float CAT(acc_q4_0_, AS)(const item_b32 *it, AS const uchar *rec, uint padded, uint i, float acc) {
    return fma((float)(CAT(dot32_, AS)(it, rec, i) - 8 * SUMS32[i]), it->d * SCALES[i], acc);
}
static inline float CAT(acc_q5_0_, AS)(const item_b32 *it, AS const uchar *rec, uint padded, uint i, float acc) {
    return fma((float)(CAT(dot32_, AS)(it, rec, i) - 16 * SUMS32[i]), it->d * SCALES[i], acc);
}
static inline float CAT(acc_min_, AS)(const item_b32 *it, AS const uchar *rec, uint padded, uint i, float acc) {
    float s = SCALES[i];
    acc = fma((float)CAT(dot32_, AS)(it, rec, i), it->d * s, acc);
    return fma(it->m * s, (float)SUMS32[i], acc);
}
static inline float CAT(acc_q8_0_, AS)(const item_b32 *it, AS const uchar *rec, uint padded, uint i, float acc) {
    return fma((float)CAT(dot32_, AS)(it, rec, i), it->d * SCALES[i], acc);
}
static inline float CAT(acc_q1_0_, AS)(const item_b32 *it, AS const uchar *rec, uint padded, uint i, float acc) {
    return fma((float)(2 * CAT(dot32_, AS)(it, rec, i) - SUMS32[i]), it->d * SCALES[i], acc);
}

static inline uint4 CAT(four_, AS)(uint x) {
    return (uint4)(spread2(x & 0xff), spread2(x >> 8 & 0xff), spread2(x >> 16 & 0xff), spread2(x >> 24));
}
static inline float CAT(acc_q2_0_, AS)(const item_q2 *it, AS const uchar *rec, uint padded, uint i, float acc) {
    int s0 = dot16(CAT(four_, AS)(it->x.y), Q4(i * 64 + 16), dot16(CAT(four_, AS)(it->x.x), Q4(i * 64), 0));
    int s1 = dot16(CAT(four_, AS)(it->x.w), Q4(i * 64 + 48), dot16(CAT(four_, AS)(it->x.z), Q4(i * 64 + 32), 0));
    acc = fma((float)(s0 - SUMS32[2 * i]), it->d * SCALES[2 * i], acc);
    return fma((float)(s1 - SUMS32[2 * i + 1]), it->d * SCALES[2 * i + 1], acc);
}

static inline float CAT(acc_k_, AS)(const item_k *it, AS const uchar *rec, uint padded, uint i, float acc) {
    float s = SCALES[i >> 2];
    AS const short *sums = SUMS16 + i * 4;
    int low = dot16(it->l1, Q4(i * 64 + 16), dot16(it->l0, Q4(i * 64), 0));
    int high = dot16(it->h1, Q4(i * 64 + 48), dot16(it->h0, Q4(i * 64 + 32), 0));
    acc = fma((float)(it->sc0 * low + it->sc1 * high), it->d * s, acc);
    return fma((float)(it->m0 * (sums[0] + sums[1]) + it->m1 * (sums[2] + sums[3])), -(it->dmin * s), acc);
}

static inline float CAT(acc_q6_k_, AS)(const item_q6 *it, AS const uchar *rec, uint padded, uint i, float acc) {
    uint at = Q6_AT(i);
    AS const short *sums = SUMS16 + at / 16;
    int all = 0;
    for (uint j = 0; j < 4; j++) {
        uint4 low = j & 1 ? it->b : it->a;
        uint4 code = ((low >> (j & 2 ? 4 : 0)) & NIBBLES) | ((it->h >> (2 * j)) & 0x03030303u) << 4;
        uint word = j & 2 ? it->scales.y : it->scales.x;
        int scale = (char)(word >> ((j & 1) * 16 + (i & 1) * 8));
        all += scale * (dot16(code, Q4(at + j * 32), 0) - 32 * sums[2 * j]);
    }
    return fma((float)all, it->d * SCALES[i >> 2], acc);
}

static inline float CAT(acc_tq2n_, AS)(const item_tq2 *it, const Row *r, AS const uchar *rec, uint padded, uint turn, uint i, float acc) {
    int s = CAT(dot_tq2_plain_, AS)(it, rec, i, turn) - CAT(sum_tq2_, AS)(SUMS16, i);
    return fma((float)s, half_at(r->p1 + i / 4 * 2), acc);
}
static inline float CAT(acc_tq1n_, AS)(const item_tq1 *it, const Row *r, AS const uchar *rec, uint padded, uint i, float acc) {
    int s = CAT(dot_tq1_, AS)(it, rec, i) - CAT(sum_tq1_, AS)(SUMS16, i);
    return fma((float)s, half_at(r->p2 + i / 3 * 2), acc);
}
