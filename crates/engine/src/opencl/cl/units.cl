// All units of the phase that are this work-group's, for activations at AS and COLUMNS columns at a time: what the lanes
// have is added up, and scale, bias, gate or residual follow at once.
static void UNITS_OF(const Ctx *c, AS const uchar *x, uint stride) {
    local const uint *P = c->P;
    const uint nt = count_tokens(c), cols = P[COLS], padded = (cols + 255) / 256 * 256;
    const bool pair = P[FLAGS] & 2;
    const bool dealt = is_dealt(c, P);
    const uint from = dealt ? c->group * TEAMS : first_unit(c, c->group), to = dealt ? P[UNITS] : first_unit(c, c->group + 1);
    for (uint b = from; b < to; b += dealt ? c->groups * TEAMS : TEAMS) {
        const bool live = b + c->team < to;
        uint unit = live ? b + c->team : to - 1;
        local const uint *p = P + PROD;
        if (!pair) {
            for (uint k = 1; k < P[NPROD]; k++) {
                uint n = (p[ROWS_OF] + ROWS - 1) / ROWS;
                if (unit < n) break;
                unit -= n;
                p += PROD_WORDS;
            }
        }
        const bool whole = p[FMT] == 1 || p[FMT] == 3 || p[FMT] == 5;
#if HAS_SHUFFLES
        // What the results will be multiplied with and added to, asked for before the sums: a team has lanes for all rows.
        float scales[2] = {0, 0}, biases[2] = {0, 0}, before = 0;
        {
            const uint row = unit * (pair ? ROWS / 2 : ROWS) + c->lane;
            if (live && c->lane < (pair ? ROWS / 2 : ROWS) && row < p[ROWS_OF]) {
                for (uint i = 0; i < (pair ? 2 : 1); i++) {
                    if (whole) scales[i] = row_scale(c, p + i * PROD_WORDS, row);
                    if (p[i * PROD_WORDS + BIAS] != NONE) biases[i] = row_bias(c, p + i * PROD_WORDS, row);
                }
                if (COLUMNS == 1 && p[ADD] != NONE) before = FLOATS(c, p[ADD], p[ADD_AT])[row];
            }
        }
#define SCALE_OF(i, of) scales[i]
#define BIAS_OF(i, of) biases[i]
#define BEFORE(at) (COLUMNS == 1 ? before : *(at))
#else
#define SCALE_OF(i, of) row_scale(c, of, row)
#define BIAS_OF(i, of) row_bias(c, of, row)
#define BEFORE(at) (*(at))
#endif
        for (uint t0 = 0; t0 < nt; t0 += COLUMNS) {
            const uint last = min((uint)COLUMNS, nt - t0) - 1;
            float out[ROWS * COLUMNS];
            PARTS(c, p, unit, x + t0 * stride, stride, last, out);
            for (uint k = 0; k < COLUMNS; k++) {
                // The sums of ROWS rows over the lanes.
#if HAS_SHUFFLES
                float sums[ROWS];
#pragma unroll
                for (uint r = 0; r < ROWS; r++) {
                    float v = out[r * COLUMNS + k];
                    for (uint o = LANES / 2; o > 0; o >>= 1) {
                        float w = lane_xor(v, o);
                        v = whole ? as_float(as_int(v) + as_int(w)) : v + w;
                    }
                    sums[r] = v;
                }
#else
                for (uint r = 0; r < ROWS; r++) c->red[r * T + c->tid] = out[r * COLUMNS + k];
                LANES_BARRIER;
#endif
                AS const uchar *rec = x + (t0 + k) * stride;
                for (uint r = c->lane; live && k <= last && r < (pair ? ROWS / 2 : ROWS); r += LANES) {
                    uint row = pair ? unit * (ROWS / 2) + r : unit * ROWS + r;
                    if (row >= p[ROWS_OF]) continue;
                    float y[2] = {0, 0};
#if HAS_SHUFFLES
#pragma unroll
                    for (uint j = 0; j < ROWS; j++) {
                        if (j == r) y[0] = sums[j];
                        if (j == r + ROWS / 2) y[1] = sums[j];
                    }
#else
                    y[0] = team_total(c, r, whole);
                    if (pair) y[1] = team_total(c, r + ROWS / 2, whole);
#endif
                    for (uint i = 0; i < (pair ? 2 : 1); i++) {
                        local const uint *of = p + i * PROD_WORDS;
                        if (whole) {
                            AS const float *scale = (AS const float *)(rec + padded + padded / 8);
                            int sum = as_int(y[i]) - ((AS const int *)scale)[1];
                            y[i] = (float)sum * SCALE_OF(i, of) * (scale[0] * as_float(of[TENSOR]));
                        } else if (of[FMT] == 2 || of[FMT] == 4) {
                            y[i] *= *(AS const float *)(rec + padded + padded / 8) * as_float(of[TENSOR]);
                        } else if (of[FMT] >= 32) {
                            y[i] *= as_float(of[TENSOR]);
                        }
                        y[i] *= as_float(of[SCALE]);
                        if (of[BIAS] != NONE) y[i] += BIAS_OF(i, of);
                    }
                    float z = pair ? activate(P[ACTIVATION], y[0]) * y[1] : y[0];
                    if (as_float(P[SOFTCAP]) != 0) z = as_float(P[SOFTCAP]) * tanh(z / as_float(P[SOFTCAP]));
                    if (p[ADD] != NONE) {
                        global float *to = FLOATS(c, p[ADD], p[ADD_AT]) + (ulong)(t0 + k) * p[ADD_STRIDE] + row;
                        *to = BEFORE(to) + z;
                    }
                    else FLOATS(c, p[OUT], p[OUT_AT])[(ulong)(t0 + k) * p[OUT_STRIDE] + row] = z;
                }
#if !HAS_SHUFFLES
                LANES_BARRIER;
#endif
            }
        }
#undef SCALE_OF
#undef BIAS_OF
#undef BEFORE
    }
}
