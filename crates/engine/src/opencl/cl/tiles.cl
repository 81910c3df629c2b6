// Products of several columns with rows of two bits a weight, by the tensor cores of NVIDIA's GPUs.
//
// A team takes a tile: 32 rows, or 16 pairs of rows, and TILE_COLUMNS columns. An instruction multiplies 16 rows with 8 columns, 32 values
// of each; which 32 these are is free as long as both sides agree. So a lane takes 16 neighbouring bytes of a row, which are 64
// weights in four planes, and of a column the 16 bytes that meet a plane. All sums are integers, so their order is free, too.

#if !SINGLE && PTX && SM >= 80
#define TILES 32            // of FLAGS: a phase is for this file; the compiler of tables sees that it can be
#define TILE_ROWS 32
#define TILE_COLUMNS 16
#define EIGHTS (TILE_COLUMNS / 8)

typedef struct { int of[4]; } Sums;
typedef struct { uint4 of[EIGHTS]; } Eights;

// Rows lane / 4 and 8 more, columns lane % 4 * 2 and 1 more.
static ALWAYS void multiply(Sums *s, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(s->of[0]), "+r"(s->of[1]), "+r"(s->of[2]), "+r"(s->of[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The sums of a tile. Columns after the last are the last once more.
static ALWAYS void sums_of_tile(const Ctx *c, local const uint *p, uint first, uint t0, global const uchar *x, uint stride, Sums (*sums)[EIGHTS]) {
    local const uint *P = c->P;
    const uint bytes = P[COLS] / 4, last = count_tokens(c) - 1, pair = P[FLAGS] & 2 ? 1 : 0;
    const bool high_first = p[FMT] == 5;
    // Of lane / 4: rows 0, 8, 16 and 24, or 0 and 8 of both products.
    global const uint4 *row[4];
#pragma unroll
    for (uint r = 0; r < 4; r++) {
        local const uint *of = p + (r < 2 ? 0 : pair * PROD_WORDS);
        const uint k = min(first + (pair ? r % 2 : r) * 8 + c->lane / 4, of[ROWS_OF] - 1);
        row[r] = (global const uint4 *)(LINE(c, of[MAT]) + (ulong)k * bytes) + c->lane % 4;
    }
    uint column[EIGHTS];
#pragma unroll
    for (uint n = 0; n < EIGHTS; n++) {
        column[n] = min(t0 + 8 * n + c->lane / 4, last) * stride + c->lane % 4 * 16;
        sums[0][n].of[0] = sums[0][n].of[1] = sums[0][n].of[2] = sums[0][n].of[3] = 0;
        sums[1][n].of[0] = sums[1][n].of[1] = sums[1][n].of[2] = sums[1][n].of[3] = 0;
    }
#define BRING_CODES(to, at) _Pragma("unroll") for (uint r = 0; r < 4; r++) to[r] = row[r][(at) / 16];
#define BRING_COLUMNS(to, at) _Pragma("unroll") for (uint n = 0; n < EIGHTS; n++) to.of[n] = *(global const uint4 *)(x + column[n] + (at));
    uint4 next[4];
    Eights coming;
    BRING_CODES(next, 0)
    BRING_COLUMNS(coming, 0)
    ROLLED for (uint at = 0; at < bytes; at += 64) {
        uint4 codes[4];
#pragma unroll
        for (uint r = 0; r < 4; r++) codes[r] = next[r];
        // What comes next is on its way while this is used; after the last step the first again.
        const uint then = at + 64 < bytes ? at + 64 : 0;
        BRING_CODES(next, then)
#pragma unroll
        for (uint plane = 0; plane < 4; plane++) {
            const Eights values = coming;
            BRING_COLUMNS(coming, plane < 3 ? (plane + 1) * bytes + at : then)
            uint4 a[4];
#pragma unroll
            for (uint r = 0; r < 4; r++) a[r] = (codes[r] >> (high_first ? 6 - 2 * plane : 2 * plane)) & 0x03030303u;
#pragma unroll
            for (uint n = 0; n < EIGHTS; n++) {
                const uint4 b = values.of[n];
                multiply(&sums[0][n], a[0].x, a[1].x, a[0].y, a[1].y, b.x, b.y);
                multiply(&sums[1][n], a[2].x, a[3].x, a[2].y, a[3].y, b.x, b.y);
                multiply(&sums[0][n], a[0].z, a[1].z, a[0].w, a[1].w, b.z, b.w);
                multiply(&sums[1][n], a[2].z, a[3].z, a[2].w, a[3].w, b.z, b.w);
            }
        }
    }
#undef BRING_CODES
#undef BRING_COLUMNS
}

static void matmul_tiles(const Ctx *c, global const uchar *x, uint stride) {
    local const uint *P = c->P;
    const bool pair = P[FLAGS] & 2;
    const uint nt = count_tokens(c), units = P[UNITS], tiles = units * ((nt + TILE_COLUMNS - 1) / TILE_COLUMNS);
    const uint padded = P[COLS], end = (c->group + 1) * tiles / c->groups;
    // Neighbouring teams have neighbouring rows and, mostly, the same columns.
    ROLLED for (uint tile = c->group * tiles / c->groups + c->team; tile < end; tile += TEAMS) {
        const uint t0 = tile / units * TILE_COLUMNS;
        uint unit = tile % units;
        local const uint *p = P + PROD;
        if (!pair)
            for (uint k = 1; k < P[NPROD]; k++) {
                const uint n = (p[ROWS_OF] + TILE_ROWS - 1) / TILE_ROWS;
                if (unit < n) break;
                unit -= n;
                p += PROD_WORDS;
            }
        local const uint *up = p + (pair ? PROD_WORDS : 0);
        const uint first = unit * (pair ? TILE_ROWS / 2 : TILE_ROWS);
        Sums sums[2][EIGHTS];
        sums_of_tile(c, p, first, t0, x, stride, sums);
        // What sums are multiplied with and added to.
        float scales[4], biases[4];
#pragma unroll
        for (uint r = 0; r < 4; r++) {
            local const uint *of = r < 2 ? p : up;
            const uint row = min(first + (pair ? r % 2 : r) * 8 + c->lane / 4, of[ROWS_OF] - 1);
            scales[r] = row_scale(c, of, row);
            biases[r] = of[BIAS] != NONE ? row_bias(c, of, row) : 0.0f;
        }
        ROLLED for (uint n = 0; n < EIGHTS; n++) {
#pragma unroll
            for (uint e = 0; e < 2; e++) {
                const uint t = t0 + 8 * n + c->lane % 4 * 2 + e;
                const uint2 of_column = *(global const uint2 *)(x + min(t, nt - 1) * stride + padded + padded / 8);
                float y[4];
#pragma unroll
                for (uint r = 0; r < 4; r++) {
                    local const uint *of = r < 2 ? p : up;
                    const int sum = sums[r / 2][0].of[r % 2 * 2 + e] - (int)of_column.y;
                    y[r] = (float)sum * scales[r] * (as_float(of_column.x) * as_float(of[TENSOR])) * as_float(of[SCALE]);
                    if (of[BIAS] != NONE) y[r] += biases[r];
                }
#pragma unroll
                for (uint r = 0; r < 4; r++) {
                    const uint row = first + r * 8 + c->lane / 4;
                    if (t >= nt || row >= p[ROWS_OF] || (pair && r >= 2)) continue;
                    const float z = pair ? activate(P[ACTIVATION], y[r]) * y[(r + 2) % 4] : y[r];
                    if (p[ADD] != NONE) FLOATS(c, p[ADD], p[ADD_AT])[(ulong)t * p[ADD_STRIDE] + row] += z;
                    else FLOATS(c, p[OUT], p[OUT_AT])[(ulong)t * p[OUT_STRIDE] + row] = z;
                }
            }
            // The next eight columns: a register has no number that a loop could count.
#pragma unroll
            for (uint k = 1; k < EIGHTS; k++) {
                sums[0][k - 1] = sums[0][k];
                sums[1][k - 1] = sums[1][k];
            }
        }
    }
}
#else
#define TILES 0
#endif
