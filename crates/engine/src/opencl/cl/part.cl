// What one lane adds up of a unit: ROWS rows times COLUMNS columns of one format. Included once for every format, place of
// the activations (AS) and number of columns; F_* are the format's row of the table in source.rs.
static void PART(const Ctx *c, local const uint *p, uint unit, AS const uchar *x, uint stride, uint last, float *out) {
    const uint cols = c->P[COLS], padded = (cols + 255) / 256 * 256;
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
#if COLUMNS == 1
#pragma unroll 2
#endif
    for (uint i = c->lane; i < F_ITEMS(cols); i += LANES) {
        F_ITEM it[ROWS];
#pragma unroll
        for (uint r = 0; r < ROWS; r++) { F_LOAD((&it[r]), (&row[r]), i); }
#pragma unroll
        for (uint k = 0; k < COLUMNS; k++) {
            AS const uchar *rec = x + min(k, last) * stride;
#pragma unroll
            for (uint r = 0; r < ROWS; r++) acc[r * COLUMNS + k] = F_STEP((&it[r]), (&row[r]), acc[r * COLUMNS + k]);
        }
    }
#pragma unroll
    for (uint j = 0; j < ROWS * COLUMNS; j++) out[j] = F_BITS(acc[j]);
}
