// What one lane adds up of a unit: ROWS rows times COLUMNS columns of one format. Included once for every format, place of
// the activations (AS) and number of columns; F_* are the format's row of the table in source.rs.
static void PART(const Ctx *c, local const uint *p, uint unit, AS const uchar *x, uint stride, uint last, float *out) {
    const uint cols = c->P[COLS], padded = (cols + 255) / 256 * 256, turn = TURN(c->P, padded);
    const bool pair = c->P[FLAGS] & 2;
    Row row[ROWS];
    // The arrays are registers only as long as every index is known to the compiler.
#pragma unroll
    for (uint r = 0; r < ROWS; r++) {
        local const uint *of = pair && r >= ROWS / 2 ? p + PROD_WORDS : p;
        uint k = pair ? unit * (ROWS / 2) + r % (ROWS / 2) : unit * ROWS + r;
        row[r] = row_of(c, of, min(k, of[ROWS_OF] - 1), F_S0(cols), F_S1(cols), F_S2(cols), F_S3(cols));
    }
    F_ACC acc[ROWS * COLUMNS];
#pragma unroll
    for (uint j = 0; j < ROWS * COLUMNS; j++) acc[j] = 0;
#define ITEMS_OF(it, i) _Pragma("unroll") for (uint r = 0; r < ROWS; r++) { F_LOAD((&it[r]), (&row[r]), i); }
#define STEPS_OF(it, at)                                                                                      \
    _Pragma("unroll") for (uint k = 0; k < COLUMNS; k++) {                                                    \
        AS const uchar *rec = x + min(k, last) * stride;                                                      \
        const uint i = at;                                                                                    \
        _Pragma("unroll") for (uint r = 0; r < ROWS; r++)                                                     \
            acc[r * COLUMNS + k] = F_STEP((&it[r]), (&row[r]), acc[r * COLUMNS + k]);                         \
    }
    const uint items = F_ITEMS(cols);
#if COLUMNS == 1 && CAT(TWICE_, F_ITEM)
    // The loads of two turns are under way together. Only of items that are small: the registers of a work-item are few.
    for (uint at = c->lane; at < items; at += 2 * LANES) {
        F_ITEM a[ROWS], b[ROWS];
        ITEMS_OF(a, at)
        ITEMS_OF(b, min(at + LANES, items - 1))
        STEPS_OF(a, at)
        if (at + LANES < items) { STEPS_OF(b, at + LANES) }
    }
#else
    for (uint at = c->lane; at < items; at += LANES) {
        F_ITEM a[ROWS];
        ITEMS_OF(a, at)
        STEPS_OF(a, at)
    }
#endif
#undef ITEMS_OF
#undef STEPS_OF
#pragma unroll
    for (uint j = 0; j < ROWS * COLUMNS; j++) out[j] = F_BITS(acc[j]);
}
