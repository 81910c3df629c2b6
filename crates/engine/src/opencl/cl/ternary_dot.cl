// The same for one place of the record, AS.
#define CAT2(a, b) a##b
#define CAT(a, b) CAT2(a, b)
#define DOT_PLAIN CAT(dot_tq2_plain_, AS)
#define DOT_FLIP CAT(dot_tq2_flip_, AS)

// `turn`: bytes from one plane's values to the next. 32 where values are in their order; else all of a plane's values lie side by
// side, and so do those that neighbouring work-items read.
#define TURN_AT(i, turn) ((turn) == 32 ? TQ2_AT(i) : 16 * (i))
static inline int DOT_PLAIN(const item_tq2 *it, AS const uchar *rec, uint i, uint turn) {
    int s = 0;
    AS const uchar *q = rec + TURN_AT(i, turn);
#pragma unroll
    for (uint l = 0; l < 4; l++) s = dot16((it->x >> (2 * l)) & 0x03030303u, *(AS const uint4 *)(q + l * turn), s);
    return s;
}
static inline int DOT_FLIP(const item_tq2 *it, AS const uchar *rec, uint i, uint turn) {
    int s = 0;
    AS const uchar *q = rec + TURN_AT(i, turn);
#pragma unroll
    for (uint l = 0; l < 4; l++) s = dot16((it->x >> (6 - 2 * l)) & 0x03030303u, *(AS const uint4 *)(q + l * turn), s);
    return s;
}
static inline int CAT(dot_tq1_, AS)(const item_tq1 *it, AS const uchar *rec, uint i) {
    int s = 0;
    uint power = 1, step = i % 3 == 2 ? 16 : 32;
    AS const uchar *q = rec + tq1_at(i);
    for (uint n = 0; n < 5; n++) {
        uint4 d = (uint4)(digits(it->x.x, power), digits(it->x.y, power), digits(it->x.z, power), digits(it->x.w, power));
        s = dot16(d, *(AS const uint4 *)(q + n * step), s);
        if (n < 4 && i % 3 == 2) s = dot4(digits(it->y, power), *(AS const uint *)(q + 80 + n * 4), s);
        power *= 3;
    }
    return s;
}
// Sums of q over the weights of an item.
static inline int CAT(sum_tq2_, AS)(AS const short *sums, uint i) {
    AS const short *s = sums + TQ2_AT(i) / 16;
    return s[0] + s[2] + s[4] + s[6];
}
static inline int CAT(sum_tq1_, AS)(AS const short *sums, uint i) {
    uint step = i % 3 == 2 ? 1 : 2;
    AS const short *s = sums + tq1_at(i) / 16;
    return s[0] + s[step] + s[2 * step] + s[3 * step] + s[4 * step] + (step == 1 ? s[5] : 0);
}
