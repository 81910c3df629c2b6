// A token's products with rows of two bits a weight, on NVIDIA's GPUs: what most of a ternary model's time goes to.
//
// A lane takes a word of a row, 16 weights, and the four words of the input that meet it. The bits of a plane stay where they
// are in their bytes: the sums of plane l are 4^l times too large, and are divided once a row. Rows of a work-group are dealt to its
// teams evenly, and a team takes four at a time. The first words of the next phase are on their way to registers while the
// work-groups meet; they were brought to the device's cache while those met that came before.

#if SINGLE && PTX
#define WORDS 32      // of FLAGS: a phase is for this file; the compiler of tables sees that it can be
#define STEPS 8       // words of a row that a lane holds
#define NORMED 8      // fours of values of the input that a work-item holds: rows that are normalized have no more

typedef struct { uint of[4][STEPS]; } Words;

// The first row, or pair of rows, of a work-group.
#define EACH_GROUP 15       // of the phase's words: rows or pairs of a work-group; the first have one more of what is left over
static inline uint share(const Ctx *c, uint group) {
    local const uint *P = c->P;
    return group * P[EACH_GROUP] + min(group, P[UNITS] - P[EACH_GROUP] * c->groups);
}
// Rows, or pairs of rows, of a team: from `first` to before `end`.
typedef struct { uint first, end; } Mine;
static inline Mine mine(const Ctx *c) {
    local const uint *P = c->P;
    const uint from = share(c, c->group), n = share(c, c->group + 1) - from;
    Mine m;
    m.first = from + c->team * n / TEAMS;
    m.end = from + (c->team + 1) * n / TEAMS;
    return m;
}
// The product that a row is of, the row's number in it, and its words. Of products that are not there no row is.
static inline global const uint *words_of(const Ctx *c, uint *row, local const uint **product) {
    local const uint *P = c->P;
    const uint first = P[PROD + ROWS_OF], second = P[PROD + PROD_WORDS + ROWS_OF];
    const uint k = *row < first ? 0 : *row - first < second ? 1 : 2;
    *row -= k == 0 ? 0 : k == 1 ? first : first + second;
    *product = P + PROD + k * PROD_WORDS;
    return (global const uint *)LINE(c, (*product)[MAT]) + (ulong)*row * (P[COLS] / 16);
}
// The words of four rows, or of two pairs; a team without so many repeats its last.
typedef struct { global const uint *row[4]; } Four;
static inline Four four_rows(const Ctx *c, uint first, uint end) {
    local const uint *P = c->P;
    const bool pair = P[FLAGS] & 2;
    Four f;
#pragma unroll
    for (uint r = 0; r < 4; r++) {
        local const uint *p = P + PROD + (r < 2 ? 0 : PROD_WORDS);
        uint row = min(first + (pair ? r % 2 : r), end - 1);
        f.row[r] = pair ? (global const uint *)LINE(c, p[MAT]) + (ulong)row * (P[COLS] / 16) : words_of(c, &row, &p);
    }
    return f;
}
// What is not loaded is 0: a register without a value of its own is kept from where it last had one.
static ALWAYS void load_words(const Ctx *c, Words *w, const Four *f, uint from, uint words) {
#pragma unroll
    for (uint k = 0; k < STEPS; k++) {
        w->of[0][k] = w->of[1][k] = w->of[2][k] = w->of[3][k] = 0;
        if (from + 32 * k >= words) continue;
        const bool has = from + 32 * k + c->lane < words;
#pragma unroll
        for (uint r = 0; r < 4; r++) w->of[r][k] = has ? (f->row[r] + (from + c->lane))[32 * k] : 0;
    }
}

// What results are multiplied with and added to, of 32 rows of a team, or pairs of rows: a lane has one.
typedef struct { float scale[2], bias[2], before; } Row32;
static ALWAYS void load_scales(const Ctx *c, Row32 *of, uint row, uint end) {
    local const uint *P = c->P, *p = P + PROD;
    const bool pair = P[FLAGS] & 2;
    of->scale[0] = of->scale[1] = of->bias[0] = of->bias[1] = of->before = 0;
    if (row >= end) return;
    if (!pair) words_of(c, &row, &p);
#pragma unroll
    for (uint i = 0; i < 2; i++) {
        local const uint *of_product = p + i * PROD_WORDS;
        if (i > 0 && !pair) continue;
        of->scale[i] = row_scale(c, of_product, row);
        if (of_product[BIAS] != NONE) of->bias[i] = row_bias(c, of_product, row);
    }
}
static ALWAYS void load_before(const Ctx *c, Row32 *of, uint row, uint end) {
    local const uint *p;
    if (row >= end || c->P[FLAGS] & 2) return;
    words_of(c, &row, &p);
    if (p[ADD] != NONE) of->before = FLOATS(c, p[ADD], p[ADD_AT])[row];
}

// What does not change, before others are waited for: the first words and scales of the team's rows.
static ALWAYS void words_ahead(const Ctx *c, Words *w, Row32 *rows) {
    const Mine m = mine(c);
    const Four f = four_rows(c, min(m.first, m.end - 1), m.end);
    load_words(c, w, &f, 0, m.first < m.end ? c->P[COLS] / 16 : 0);
    load_scales(c, rows, m.first + c->lane, m.end);
}

static inline uint most_of_team(uint x) {
#if SM >= 80
    uint y;
    asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
    return y;
#else
    for (uint o = 16; o > 0; o >>= 1) x = max(x, (uint)lane_xor_int((int)x, o));
    return x;
#endif
}
static inline int sum_of_team(int x) {
#if SM >= 80
    int y;
    asm volatile("redux.sync.add.s32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
    return y;
#else
    for (uint o = 16; o > 0; o >>= 1) x += lane_xor_int(x, o);
    return x;
#endif
}
static inline int dot_codes(uint codes, uint q, int acc) {
    int d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(codes), "r"(q), "r"(acc));
    return d;
}
static inline float4 lanes_xor(float4 x, uint o) {
    return (float4)(lane_xor(x.x, o), lane_xor(x.y, o), lane_xor(x.z, o), lane_xor(x.w, o));
}

// The input to `q`, normalized if asked for: the words of a place in the four planes side by side. Returns the scale, and the sum of
// all values to `total`. Sums and roundings are the CPU's: lane i % 1024 of the sum of squares takes value i.
static ALWAYS float quantize_words(const Ctx *c, local uint *q, int *total) {
    local const uint *P = c->P;
    const uint fours = P[COLS] / 4;
    const bool high_first = P[PROD + FMT] == 5;
    global const float4 *x = (global const float4 *)FLOATS(c, P[IN], P[IN_AT]);
    local uint *most = (local uint *)(c->red + SUM_LANES);
    local int *sums = (local int *)most + TEAMS;
    float4 v[NORMED];
#define EACH_FOUR _Pragma("unroll") for (uint k = 0; k < NORMED; k++) if (from + k * T < fours)
#define AT (from + k * T + c->tid)
#define BRING _Pragma("unroll") for (uint k = 0; k < NORMED; k++) v[k] = AT < fours ? x[AT] : (float4)(0.0f);
    uint from = 0, m = 0;
    BRING
    if (P[NORM] != NONE) {
        global const float4 *weights = (global const float4 *)FLOATS(c, P[NORM], 0);
        float4 w[NORMED];
#pragma unroll
        for (uint k = 0; k < NORMED; k++) w[k] = AT < fours ? weights[AT] : (float4)(0.0f);
        float4 s = (float4)(0.0f);
        EACH_FOUR s = fma(v[k], v[k], s);
        local float4 *all = (local float4 *)c->red;
        all[c->tid] = s;
        LOCAL_BARRIER;
        const local float4 *of = all + c->lane;
        s = ((of[0] + of[128]) + (of[64] + of[192])) + ((of[32] + of[160]) + (of[96] + of[224]));
        for (uint o = 16; o > 0; o >>= 1) s += lanes_xor(s, o);
        const float factor = 1.0f / sqrt(((s.x + s.z) + (s.y + s.w)) / (float)P[COLS] + as_float(P[EPS]));
        EACH_FOUR v[k] = v[k] * factor * w[k];
    }
    // As integers the magnitudes are in the same order, and what is no number is above all of them.
    const bool once = fours <= NORMED * T;
    for (;;) {
        EACH_FOUR {
            const uint4 b = as_uint4(v[k]) & 0x7fffffffu;
            m = max(m, max(max(b.x, b.y), max(b.z, b.w)));
        }
        from += NORMED * T;
        if (from >= fours) break;
        BRING
    }
    m = most_of_team(m);
    if (c->lane == 0) most[c->team] = m;
    LOCAL_BARRIER;
    for (uint i = 0; i < TEAMS; i++) m = max(m, most[i]);
    const float inverse = 127.0f / as_float(m);
    const bool bad = m >= 0x7f800000u, zero = bad || isinf(inverse);
    int sum = 0;
    for (from = 0; from < fours; from += NORMED * T) {
        // Values again, where there are more than the registers hold.
        if (!once) { BRING }
        EACH_FOUR {
            const uint i = AT, plane = i % 32 / 8;
            const int4 y = zero ? (int4)(0) : convert_int4(rint(v[k] * inverse));
            const uint word = (uint)(y.x & 255) | (uint)(y.y & 255) << 8 | (uint)(y.z & 255) << 16 | (uint)y.w << 24;
            if (i < fours) q[(i / 32 * 8 + i % 8) * 4 + (high_first ? 3 - plane : plane)] = word;
            sum = dot4(word, 0x01010101u, sum);
        }
    }
#undef EACH_FOUR
#undef AT
#undef BRING
    sum = sum_of_team(sum);
    if (c->lane == 0) sums[c->team] = sum;
    LOCAL_BARRIER;
    sum = 0;
    for (uint i = 0; i < TEAMS; i++) sum += sums[i];
    *total = sum;
    return bad ? NAN : zero ? 0.0f : as_float(m) / 127.0f;
}

// The sums of four rows' planes.
typedef struct { int of[4][4]; } Sums;
static ALWAYS void add_words(const Ctx *c, Sums *acc, const Words *w, local const uint4 *q, uint from, uint words) {
#pragma unroll
    for (uint k = 0; k < STEPS; k++) {
        if (from + 32 * k >= words) continue;
        const uint4 x = q[from + 32 * k + c->lane];
#pragma unroll
        for (uint r = 0; r < 4; r++) {
            acc->of[r][0] = dot_codes(w->of[r][k] & 0x03030303u, x.x, acc->of[r][0]);
            acc->of[r][1] = dot_codes(w->of[r][k] & 0x0c0c0c0cu, x.y, acc->of[r][1]);
            acc->of[r][2] = dot_codes(w->of[r][k] & 0x30303030u, x.z, acc->of[r][2]);
            acc->of[r][3] = dot_codes(w->of[r][k] & 0xc0c0c0c0u, x.w, acc->of[r][3]);
        }
    }
}

typedef struct { int of[2]; } Own;
static ALWAYS void finish(const Ctx *c, const Row32 *of, uint row, bool live, const Own *sums, float scale) {
    local const uint *P = c->P, *p = P + PROD, *up = p + PROD_WORDS;
    const bool pair = P[FLAGS] & 2;
    if (!live) return;
    if (!pair) words_of(c, &row, &p);
    float y = (float)sums->of[0] * of->scale[0] * (scale * as_float(p[TENSOR])) * as_float(p[SCALE]);
    if (p[BIAS] != NONE) y += of->bias[0];
    if (pair) {
        float z = (float)sums->of[1] * of->scale[1] * (scale * as_float(up[TENSOR])) * as_float(up[SCALE]);
        if (up[BIAS] != NONE) z += of->bias[1];
        y = activate(P[ACTIVATION], y) * z;
    }
    if (p[ADD] != NONE) FLOATS(c, p[ADD], p[ADD_AT])[row] = of->before + y;
    else FLOATS(c, p[OUT], p[OUT_AT])[row] = y;
}

static ALWAYS void matvec_words(const Ctx *c, const Words *ahead, const Row32 *scales) {
    local const uint *P = c->P;
    if (share(c, c->group) == share(c, c->group + 1)) return;
    local uint *q = (local uint *)c->L;
    const Mine m = mine(c);
    const bool pair = P[FLAGS] & 2;
    const uint words = P[COLS] / 16, each = pair ? 2 : 4;
    int total;
    const float scale = quantize_words(c, q, &total);
    if (m.first >= m.end) return;
    Row32 rows = *scales;
    load_before(c, &rows, m.first + c->lane, m.end);
    Four f = four_rows(c, m.first, m.end);
    Words w = *ahead;
    // A lane keeps the sums of its row until there are 32, or no more.
    Own own;
    own.of[0] = own.of[1] = 0;
    ROLLED for (uint u = m.first; u < m.end; u += each) {
        Sums acc;
#pragma unroll
        for (uint r = 0; r < 4; r++) acc.of[r][0] = acc.of[r][1] = acc.of[r][2] = acc.of[r][3] = 0;
        ROLLED for (uint from = 0; from < words; from += 32 * STEPS) {
            // The next words come while these are used.
            Words next;
            const bool more = from + 32 * STEPS < words;
            if (!more && u + each < m.end) f = four_rows(c, u + each, m.end);
            load_words(c, &next, &f, more ? from + 32 * STEPS : 0, more || u + each < m.end ? words : 0);
            add_words(c, &acc, &w, (local const uint4 *)q, from, words);
            w = next;
        }
        int sums[4];
#pragma unroll
        for (uint r = 0; r < 4; r++)
            sums[r] = sum_of_team(acc.of[r][0] + (acc.of[r][1] >> 2) + (acc.of[r][2] >> 4) + (acc.of[r][3] >> 6)) - total;
        const uint nth = (u - m.first) % 32;
#pragma unroll
        for (uint r = 0; r < 4; r++)
            if (c->lane == nth + (pair ? r % 2 : r)) own.of[pair ? r / 2 : 0] = sums[r];
        if (nth + each < 32 && u + each < m.end) continue;
        const uint nth_row = u - nth + c->lane;
        finish(c, &rows, nth_row, nth_row < min(u + each, m.end), &own, scale);
        if (u + each >= m.end) break;
        load_scales(c, &rows, u + each + c->lane, m.end);
        load_before(c, &rows, u + each + c->lane, m.end);
    }
}
#endif
