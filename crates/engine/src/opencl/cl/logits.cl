// A token's products with a head in Q6_K: many rows, so that the memory's speed counts.
//
// An item is 64 weights of a row, 16 of each of four sub-blocks; the input's values lie in the same order, those of sub-block j for all items
// side by side. A team takes a few rows at a time, a round of 32 items after the other. The items of the next rows are asked for as soon
// as the last ones are used. What is left of several rows, where that is a whole round, is one; its products go to the lanes they would have
// been in otherwise, so that a row's sum does not depend on its place.

#define ITEMS (K(COLS) / 64)
#define FULL (ITEMS / 32)                       // whole rounds of a row
#define REST (ITEMS % 32)
#if REST == 8
#define TAKES_ROWS 4
#else
#define TAKES_ROWS 2
#endif
#define PACKED (REST * TAKES_ROWS == 32)
#define OF_ROW (FULL + (REST > 0 && !PACKED))   // rounds of a row
#define ROUNDS (TAKES_ROWS * OF_ROW + PACKED)
#define LAST_ROUND(n) (PACKED && (n) == TAKES_ROWS * OF_ROW)
#define NORMED (K(NORM) != NONE)
#define FOURS ((K(COLS) / 4 + T - 1) / T)
#define UNITS_OF_ROWS ((K_ROWS_0 + TAKES_ROWS - 1) / TAKES_ROWS)

// Row and item of a round that a lane has; of more items than there are, the last.
static inline uint OF_PHASE(row_)(const Ctx *c, uint n) { return LAST_ROUND(n) ? c->lane / (REST + !REST) : n / (OF_ROW + !OF_ROW); }
static inline uint OF_PHASE(item_)(const Ctx *c, uint n) {
    return LAST_ROUND(n) ? FULL * 32 + c->lane % (REST + !REST) : min(n % (OF_ROW + !OF_ROW) * 32 + c->lane, (uint)ITEMS - 1);
}
static ALWAYS void OF_PHASE(load_)(const Ctx *c, item_q6 *it, uint unit, uint n) {
    local const uint *p = c->P + PROD;
    const uint row = min(unit * TAKES_ROWS, K_ROWS_0 - TAKES_ROWS) + OF_PHASE(row_)(c, n);
    const Row r = row_of(c, p, row, K(COLS) / 2, K(COLS) / 4, K(COLS) / 16, STRIDE(K(COLS) / 256, 2));
    load_q6_k(it, &r, OF_PHASE(item_)(c, n));
}

// The input to local memory: values, a scale for every 256 and four sums for every item. The arithmetic is that of quantize.cl.
static ALWAYS void OF_PHASE(quantize_)(const Ctx *c, const float4 *weights, local uint *q, local short *sums, local float *scales) {
    const uint fours = K(COLS) / 4;
    global const float4 *x = (global const float4 *)FLOATS(c, c->P[IN], K(IN_AT));
    float4 v[FOURS];
#define EACH_FOUR _Pragma("unroll") for (uint k = 0, i = c->tid; k < FOURS; k++, i += T)
#define IS_THERE ((k + 1) * T <= fours || i < fours)
    EACH_FOUR v[k] = IS_THERE ? x[i] : (float4)(0.0f);
#if NORMED
    const float factor = norm_factor(c, v, FOURS, K(COLS), as_float(K(EPS)));
    EACH_FOUR v[k] = v[k] * factor * weights[k];
    LOCAL_BARRIER;
#endif
    // A maximum of 256 values belongs to two teams.
    local uint *most = (local uint *)c->red;
    EACH_FOUR {
        const uint4 b = as_uint4(v[k]) & 0x7fffffffu;
        const uint m = most_of_team(max(max(b.x, b.y), max(b.z, b.w)));
        if (c->lane == 0) most[i / 32] = m;
    }
    LOCAL_BARRIER;
    EACH_FOUR {
        const uint m = max(most[i / 64 * 2], most[i / 64 * 2 + 1]);
        const float inverse = 127.0f / as_float(m);
        const bool bad = m >= 0x7f800000u, zero = bad || isinf(inverse);
        const uint word = to_bytes(v[k], zero ? 0.0f : inverse);
        int sum = dot4(word, 0x01010101u, 0);
        sum += lane_xor_int(sum, 1);
        sum += lane_xor_int(sum, 2);
        const uint sixteen = i / 4, item = sixteen / 8 * 2 + sixteen % 2, sub = sixteen % 8 / 2;
        if (IS_THERE) {
            q[(sub * ITEMS + item) * 4 + i % 4] = word;
            if (i % 4 == 0) sums[item * 4 + sub] = (short)sum;
            if (i % 64 == 0) scales[i / 64] = bad ? NAN : zero ? 0.0f : as_float(m) / 127.0f;
        }
    }
#undef EACH_FOUR
#undef IS_THERE
    LOCAL_BARRIER;
}

static ALWAYS float OF_PHASE(product_of_)(const item_q6 *it, uint i, local const uint4 *q, local const uint2 *sums, local const float *scales) {
    const uint shift = i % 2 * 8;
    uint words[2], of[2];
    words[0] = it->scales.x >> shift; words[1] = it->scales.y >> shift;
    of[0] = sums[i].x; of[1] = sums[i].y;
    int all = 0;
#pragma unroll
    for (uint j = 0; j < 4; j++) {
        const uint4 low = j & 1 ? it->b : it->a;
        const uint4 code = ((low >> (j & 2 ? 4 : 0)) & NIBBLES) | ((it->h >> (2 * j)) & 0x03030303u) << 4;
        const int sum = (short)(of[j / 2] >> (j % 2 * 16)), scale = (char)(words[j / 2] >> (j % 2 * 16));
        all += scale * (dot16(code, q[j * ITEMS + i], 0) - 32 * sum);
    }
    return (float)all * (it->d * scales[i / 4]);
}

static ALWAYS bool OF_PHASE(known_phase_)(const Ctx *c, const Meeting *meeting) {
    local const uint *P = c->P, *p = P + PROD;
    local uint *q = (local uint *)c->L;
    local short *sums = (local short *)(q + K(COLS) / 4);
    local float *scales = (local float *)(sums + K(COLS) / 16);
    uint unit = c->group * TEAMS + c->team;
    item_q6 it[ROUNDS];
    const item_q6 none = {(uint4)(0), (uint4)(0), (uint4)(0), (uint2)(0), 0.0f};
#pragma unroll
    for (uint n = 0; n < ROUNDS; n++) it[n] = none;
    float4 weights[FOURS];
#if NORMED
#pragma unroll
    for (uint k = 0; k < FOURS; k++) {
        const uint i = c->tid + k * T;
        weights[k] = i < K(COLS) / 4 ? ((global const float4 *)FLOATS(c, P[NORM], 0))[i] : (float4)(0.0f);
    }
#endif
    if (unit < UNITS_OF_ROWS)
#pragma unroll
        for (uint n = 0; n < ROUNDS; n++) OF_PHASE(load_)(c, &it[n], unit, n);
    if (!meet(c, meeting)) return false;
    OF_PHASE(quantize_)(c, weights, q, sums, scales);
    ROLLED for (; unit < UNITS_OF_ROWS; unit += GROUPS * TEAMS) {
        float acc[TAKES_ROWS];
#pragma unroll
        for (uint r = 0; r < TAKES_ROWS; r++) acc[r] = 0;
        const uint next = min(unit + GROUPS * TEAMS, (uint)UNITS_OF_ROWS - 1);
#pragma unroll
        for (uint n = 0; n < ROUNDS; n++) {
            const uint item = OF_PHASE(item_)(c, n);
            float x = OF_PHASE(product_of_)(&it[n], item, (local const uint4 *)q, (local const uint2 *)sums, scales);
            OF_PHASE(load_)(c, &it[n], next, n);
            if (LAST_ROUND(n)) {
#pragma unroll
                for (uint r = 0; r < TAKES_ROWS; r++) {
                    const float moved = lane_from(x, r * REST + c->lane % (REST + !REST));
                    acc[r] += c->lane < REST ? moved : 0.0f;
                }
            } else {
                const bool there = ITEMS % 32 == 0 || n % (OF_ROW + !OF_ROW) * 32 + c->lane < ITEMS;
                acc[n / (OF_ROW + !OF_ROW)] += there ? x : 0.0f;
            }
        }
        // Half of the lanes go on with half of the rows each, until a lane has one.
        float sum;
        uint row;
#if TAKES_ROWS == 4
        const bool high = c->lane & 16;
        const float a = (high ? acc[2] : acc[0]) + lane_xor(high ? acc[0] : acc[2], 16);
        const float b = (high ? acc[3] : acc[1]) + lane_xor(high ? acc[1] : acc[3], 16);
        sum = (c->lane & 8 ? b : a) + lane_xor(c->lane & 8 ? a : b, 8);
        row = c->lane / 16 * 2 + c->lane / 8 % 2;
#else
        sum = (c->lane & 16 ? acc[1] : acc[0]) + lane_xor(c->lane & 16 ? acc[0] : acc[1], 16);
        sum += lane_xor(sum, 8);
        row = c->lane / 16;
#endif
#pragma unroll
        for (uint o = 4; o > 0; o >>= 1) sum += lane_xor(sum, o);
        float z = sum * as_float(p[SCALE]);
        if (K(SOFTCAP) != 0) z = as_float(K(SOFTCAP)) * tanh(z / as_float(K(SOFTCAP)));
        if (c->lane % (TAKES_ROWS == 4 ? 8 : 16) == 0)
            FLOATS(c, p[OUT], p[OUT_AT])[min(unit * TAKES_ROWS, K_ROWS_0 - TAKES_ROWS) + row] = z;
    }
    return true;
}

#undef ITEMS
#undef FULL
#undef REST
#undef TAKES_ROWS
#undef PACKED
#undef OF_ROW
#undef ROUNDS
#undef LAST_ROUND
#undef NORMED
#undef FOURS
#undef UNITS_OF_ROWS
