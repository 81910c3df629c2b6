// A token's products with rows of two bits a weight.
//
// A lane takes a word of a row, 16 weights, and the four words of the input that meet it. The bits of a plane stay where they
// are in their bytes: the sums of plane l are 4^l times too large, and are divided once a row. Rows, or pairs of rows, of a work-group are
// dealt to its teams evenly, and a team takes up to four rows at a time. Their words come in pieces, as many as registers have room for
// before the work-groups meet, and then two pieces ahead.

#define WORDS (K(COLS) / 16)
#define PAIR (K(FLAGS) & 2)
#define WORDS_OF_LANE ((WORDS + 31) / 32)
#if WORDS_OF_LANE <= 8
#define CHUNKS 1                                             // pieces of a row
#else
#define CHUNKS ((WORDS_OF_LANE + 15) / 16 * 2)
#endif
#define STEPS ((WORDS_OF_LANE + CHUNKS - 1) / CHUNKS)        // words of a piece that a lane has of each row
#define SHARING (GROUPS - K(BUSY))                           // work-groups that have rows
#define SHARE (K(UNITS) / SHARING)                            // rows or pairs of a work-group; the first LEFT have one more
#define LEFT (K(UNITS) % SHARING)
#define MOST ((SHARE + (LEFT > 0) + TEAMS - 1) / TEAMS)      // of a team
#if PAIR
#define TAKES ((MOST + 1) / 2)                               // how many times a team takes some
#else
#define TAKES ((MOST + 3) / 4)
#endif
#define EACH ((MOST + TAKES - 1) / TAKES)                    // rows or pairs that it takes at a time
#define ROWS_AT_ONCE (PAIR ? 2 * EACH : EACH)
#define FOURS ((K(COLS) / 4 + T - 1) / T)                    // fours of values of the input that a work-item has
#define NORMED (K(NORM) != NONE)
#define BIASED (K_BIAS_0 != NONE || K_BIAS_1 != NONE || K_BIAS_2 != NONE)
#define ADDED (K_ADD_0 != NONE || K_ADD_1 != NONE || K_ADD_2 != NONE)
#define PIECES (TAKES * CHUNKS)
#define HOLD_ALL (PIECES <= 2)
#if HOLD_ALL
#define HELD PIECES
#else
#define HELD 2
#endif

typedef struct { uint of[ROWS_AT_ONCE][STEPS]; } OF_PHASE(Piece);

// The product that a row is of, and the row's number in it.
static ALWAYS local const uint *OF_PHASE(product_)(const Ctx *c, uint *row) {
    local const uint *p = c->P + PROD;
#if K(NPROD) > 1 && !PAIR
    const bool second = *row >= K_ROWS_0;
    if (second) { *row -= K_ROWS_0; p += PROD_WORDS; }
#if K(NPROD) > 2
    if (second && *row >= K_ROWS_1) { *row -= K_ROWS_1; p += PROD_WORDS; }
#endif
#endif
    return p;
}

// Piece `chunk` of the rows from `first` on; a team without so many repeats its last.
static ALWAYS void OF_PHASE(load_)(const Ctx *c, OF_PHASE(Piece) *w, uint first, uint end, uint chunk) {
#pragma unroll
    for (uint r = 0; r < ROWS_AT_ONCE; r++) {
        uint row = min(first + r % EACH, end - 1);
        local const uint *p = OF_PHASE(product_)(c, &row) + r / EACH * PROD_WORDS;
        global const uint *from = (global const uint *)LINE(c, p[MAT]) + row * WORDS + (chunk * STEPS * 32 + c->lane);
#pragma unroll
        for (uint k = 0; k < STEPS; k++) {
            const bool has = (chunk * STEPS + k + 1) * 32 <= WORDS || (chunk * STEPS + k) * 32 + c->lane < WORDS;
            w->of[r][k] = has ? from[32 * k] : 0;
        }
    }
}

typedef struct { int of[ROWS_AT_ONCE][4]; } OF_PHASE(Sums);
static ALWAYS void OF_PHASE(add_)(const Ctx *c, OF_PHASE(Sums) *acc, const OF_PHASE(Piece) *w, local const uint4 *q, uint chunk) {
#pragma unroll
    for (uint k = 0; k < STEPS; k++) {
        if ((chunk * STEPS + k) * 32 >= WORDS) continue;
        const uint4 x = q[(chunk * STEPS + k) * 32 + c->lane];
#pragma unroll
        for (uint r = 0; r < ROWS_AT_ONCE; r++) {
            acc->of[r][0] = dot_codes(w->of[r][k] & 0x03030303u, x.x, acc->of[r][0]);
            acc->of[r][1] = dot_codes(w->of[r][k] & 0x0c0c0c0cu, x.y, acc->of[r][1]);
            acc->of[r][2] = dot_codes(w->of[r][k] & 0x30303030u, x.z, acc->of[r][2]);
            acc->of[r][3] = dot_codes(w->of[r][k] & 0xc0c0c0c0u, x.w, acc->of[r][3]);
        }
    }
}
// A lane keeps the sums of its row, or pair.
typedef struct { int of[2]; } OF_PHASE(Own);
static ALWAYS void OF_PHASE(keep_)(const Ctx *c, OF_PHASE(Own) *own, const OF_PHASE(Sums) *acc, uint take) {
#pragma unroll
    for (uint r = 0; r < ROWS_AT_ONCE; r++) {
        const int *a = acc->of[r];
        const int sum = sum_of_team(a[0] + (a[1] >> 2) + (a[2] >> 4) + (a[3] >> 6));
        if (c->lane == take * EACH + r % EACH) own->of[r / EACH] = sum;
    }
}

// The input to `q`, normalized if asked for: the words of a place in the four planes side by side. Returns the scale, and the sum of
// all values to `total`.
#define EACH_FOUR _Pragma("unroll") for (uint k = 0, i = c->tid; k < FOURS; k++, i += T)
#define IS_THERE ((k + 1) * T <= K(COLS) / 4 || i < K(COLS) / 4)
static ALWAYS float OF_PHASE(quantize_)(const Ctx *c, float4 *v, const float4 *weights, local uint *q, int *total) {
    local uint *most = (local uint *)(c->red + OF_TEAMS);
    local int *sums = (local int *)most + TEAMS;
#if NORMED
    const float factor = norm_factor(c, v, FOURS, K(COLS), as_float(K(EPS)));
    EACH_FOUR v[k] = v[k] * factor * weights[k];
#endif
    // As integers the magnitudes are in the same order, and what is no number is above all of them.
    uint m = 0;
    EACH_FOUR {
        const uint4 b = as_uint4(v[k]) & 0x7fffffffu;
        m = max(m, max(max(b.x, b.y), max(b.z, b.w)));
    }
    m = most_of_team(m);
    if (c->lane == 0) most[c->team] = m;
    LOCAL_BARRIER;
    m = most_of_all(most);
    // Nothing but zeros where there is a value that is no number, whose scale says so, or where the scale would be too small.
    float inverse = 127.0f / as_float(m);
    const bool bad = m >= 0x7f800000u, zero = bad || isinf(inverse);
    inverse = zero ? 0.0f : inverse;
    int sum = 0;
    EACH_FOUR {
        const uint plane = i % 32 / 8, place = K_FMT == 5 ? 3 - plane : plane;
        const uint word = to_bytes(v[k], inverse);
        if (IS_THERE) q[(i / 32 * 8 + i % 8) * 4 + place] = word;
        sum = dot4(word, 0x01010101u, sum);
    }
    sum = sum_of_team(sum);
    if (c->lane == 0) sums[c->team] = sum;
    LOCAL_BARRIER;
    *total = sum_of_all(sums);
    return bad ? NAN : zero ? 0.0f : as_float(m) / 127.0f;
}

static ALWAYS bool OF_PHASE(known_phase_)(const Ctx *c, const Meeting *meeting) {
    local const uint *P = c->P;
    local uint *q = (local uint *)c->L;
    const uint group = c->group - K(BUSY);
    const uint rows = c->group < K(BUSY) ? 0 : SHARE + (group < LEFT), before = group * SHARE + min(group, (uint)LEFT);
    const uint first = before + c->team * rows / TEAMS, end = before + (c->team + 1) * rows / TEAMS;
    // What does not change, before others are waited for.
    OF_PHASE(Piece) w[HELD];
    float4 v[FOURS], weights[FOURS];
    EACH_FOUR v[k] = weights[k] = (float4)(0.0f);
#if NORMED
    EACH_FOUR if (IS_THERE) weights[k] = ((global const float4 *)FLOATS(c, P[NORM], 0))[i];
#endif
#pragma unroll
    for (uint j = 0; j < HELD; j++)
#pragma unroll
        for (uint r = 0; r < ROWS_AT_ONCE; r++)
#pragma unroll
            for (uint k = 0; k < STEPS; k++) w[j].of[r][k] = 0;
    // What the results are multiplied with and added to: a lane has a row, or a pair.
    uint row = first + c->lane;
    const bool live = row < end;
    local const uint *p = OF_PHASE(product_)(c, &row);
    float scale_of[2] = {0, 0}, bias[2] = {0, 0}, residual = 0;
    // The team that looks whether all have come has its own loads behind that.
    ROLLED for (uint turn = 0; turn < 2; turn++) {
        if (turn == 1 && rows > 0) {
            global const float4 *x = (global const float4 *)FLOATS(c, P[IN], K(IN_AT));
            EACH_FOUR if (IS_THERE) v[k] = x[i];
        }
        if (turn == (c->team == 0) && first < end) {
#pragma unroll
            for (uint j = 0; j < HELD; j++) OF_PHASE(load_)(c, &w[j], first + j / CHUNKS * EACH, end, j % CHUNKS);
            if (live) {
#pragma unroll
                for (uint i = 0; i < (PAIR ? 2 : 1); i++) {
                    local const uint *of = p + i * PROD_WORDS;
                    scale_of[i] = ((global const float *)LINE(c, of[MAT] + of[PL1]))[row];
#if BIASED
                    if (of[BIAS] != NONE) bias[i] = row_bias(c, of, row);
#endif
                }
            }
        }
        if (turn == 0 && !meet(c, meeting)) return false;
    }
#if SHARE == 0 || K(BUSY) > 0
    if (rows == 0) return true;
#endif
    int total;
    const float scale = OF_PHASE(quantize_)(c, v, weights, q, &total);
    if (first >= end) return true;
#if ADDED
    if (live && p[ADD] != NONE) residual = FLOATS(c, p[ADD], p[ADD_AT])[row];
#endif
    OF_PHASE(Own) own;
    own.of[0] = own.of[1] = 0;
    local const uint4 *input = (local const uint4 *)q;
#define ZERO(acc)                                         \
    _Pragma("unroll") for (uint r = 0; r < ROWS_AT_ONCE; r++) \
        acc.of[r][0] = acc.of[r][1] = acc.of[r][2] = acc.of[r][3] = 0;
#if HOLD_ALL
#pragma unroll
    for (uint take = 0; take < TAKES; take++) {
        if (first + take * EACH >= end) break;
        OF_PHASE(Sums) acc;
        ZERO(acc)
#pragma unroll
        for (uint chunk = 0; chunk < CHUNKS; chunk++) OF_PHASE(add_)(c, &acc, &w[take * CHUNKS + chunk], input, chunk);
        OF_PHASE(keep_)(c, &own, &acc, take);
    }
#elif CHUNKS == 1
    ROLLED for (uint take = 0; first + take * EACH < end; take += 2) {
#pragma unroll
        for (uint j = 0; j < 2; j++) {
            if (first + (take + j) * EACH >= end) break;
            OF_PHASE(Sums) acc;
            ZERO(acc)
            OF_PHASE(add_)(c, &acc, &w[j], input, 0);
            if (first + (take + j + 2) * EACH < end) OF_PHASE(load_)(c, &w[j], first + (take + j + 2) * EACH, end, 0);
            OF_PHASE(keep_)(c, &own, &acc, take + j);
        }
    }
#else
    ROLLED for (uint take = 0; first + take * EACH < end; take++) {
        OF_PHASE(Sums) acc;
        ZERO(acc)
#pragma unroll
        for (uint chunk = 0; chunk < CHUNKS; chunk++) {
            OF_PHASE(add_)(c, &acc, &w[chunk % 2], input, chunk);
            const uint next = (chunk + 2) % CHUNKS, from = first + (chunk + 2 < CHUNKS ? take : take + 1) * EACH;
            if (from < end) OF_PHASE(load_)(c, &w[chunk % 2], from, end, next);
        }
        OF_PHASE(keep_)(c, &own, &acc, take);
    }
#endif
#undef ZERO
    if (!live) return true;
    float y = (float)(own.of[0] - total) * scale_of[0] * (scale * as_float(p[TENSOR])) * as_float(p[SCALE]);
#if BIASED
    if (p[BIAS] != NONE) y += bias[0];
#endif
#if PAIR
    local const uint *up = p + PROD_WORDS;
    float z = (float)(own.of[1] - total) * scale_of[1] * (scale * as_float(up[TENSOR])) * as_float(up[SCALE]);
#if BIASED
    if (up[BIAS] != NONE) z += bias[1];
#endif
    y = activate(K(ACTIVATION), y) * z;
#endif
#if ADDED
    if (p[ADD] != NONE) {
        FLOATS(c, p[ADD], p[ADD_AT])[row] = residual + y;
        return true;
    }
#endif
    FLOATS(c, p[OUT], p[OUT_AT])[row] = y;
    return true;
}

#undef WORDS
#undef PAIR
#undef WORDS_OF_LANE
#undef CHUNKS
#undef STEPS
#undef SHARING
#undef SHARE
#undef LEFT
#undef MOST
#undef TAKES
#undef EACH
#undef ROWS_AT_ONCE
#undef FOURS
#undef NORMED
#undef BIASED
#undef ADDED
#undef PIECES
#undef HOLD_ALL
#undef HELD
#undef EACH_FOUR
#undef IS_THERE
