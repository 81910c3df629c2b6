// Rotation, the cache, and attention over it.
//
// Words of the phases ROPE_KV and ATTEND:
#define HEADS 9
#define KV_HEADS 10
#define TILE 11        // query heads that share a walk over the cache
#define LAYER_AT 12    // byte of the layer's keys in a page
#define HALF 13        // bytes from keys to values
#define ROW_BYTES 14
#define KV_TILE 15     // positions whose keys or values local memory has room for; 0: they are read where they are
#define K_NORM 16
#define K_AT 17
#define V_AT 18
#define A_OUT 19
#define A_OUT_AT 20
#define A_OUT_STRIDE 21
#define WINDOW 22      // 0: none
#define A_SCALE 23
#define ROPE 24        // line of the angles: for each position cos, then sin, of each pair
#define OF_STEP 25     // 1: of the step's positions alone
#define PAIRS 26
#define HALVES 27      // 1: pairs are half a rotation apart
#define FRESH 28       // 1: queries and this token's key and value come as the product left them
#define PARTIAL 29     // results of splits
#define MAX_SPLITS 30
#define ROWS_AT 31     // where in local memory that room is, in 16 bytes
#define MANY 32        // 1: `attend_many` has the local memory it needs
// IN, IN_AT, IN_STRIDE: queries; NORM: the queries' norm; COLS: values of a head.
#define PAGE 32
#define NEAR 256      // pages whose lines local memory holds
#define SPAN 512       // positions walked over at a time; as many as that have the CPU's bits

static inline void rotate(const Ctx *c, local float *x, uint heads, uint d, local const float *angles) {
    local const uint *P = c->P;
    const uint pairs = P[PAIRS];
    ROLLED for (uint i = c->tid; i < heads * pairs; i += T) {
        uint h = i / pairs, k = i % pairs;
        uint a = h * d + (P[HALVES] ? k : 2 * k), b = P[HALVES] ? a + pairs : a + 1;
        float co = angles[k], si = angles[pairs + k];
        float x0 = x[a], x1 = x[b];
        x[a] = fma(x1, -si, x0 * co);
        x[b] = fma(x0, si, x1 * co);
    }
    LOCAL_BARRIER;
}

// Each head of x by its root mean square.
static inline void norm_heads(const Ctx *c, local float *x, uint heads, uint d, uint weight) {
    if (weight == NONE) return;
    global const float *w = FLOATS(c, weight, 0);
    for (uint h = 0; h < heads; h++) {
        local float *of = x + h * d;
        const float factor = rms_factor_local(c, of, d, as_float(c->P[EPS]));
        ROLLED for (uint i = c->tid; i < d; i += T) of[i] = of[i] * factor * w[i];
    }
    LOCAL_BARRIER;
}

static inline global uchar *kv_page(const Ctx *c, uint pos) {
#if SINGLE && PTX
    if (pos / PAGE < NEAR) return LINE(c, c->near[pos / PAGE]);
#endif
    return LINE(c, ((global const uint *)LINE(c, c->pages))[pos / PAGE]);
}
static inline global uchar *kv_row(const Ctx *c, uint head, uint pos, bool value) {
    local const uint *P = c->P;
    return kv_page(c, pos) + P[LAYER_AT] + (value ? P[HALF] : 0) + (head * PAGE + pos % PAGE) * P[ROW_BYTES];
}
static inline float kv_value(const Ctx *c, global const uchar *row, uint i) {
    if (KV_KIND == 1) return half_at(row + 2 * i);
    if (KV_KIND == 0) return ((global const float *)row)[i];
    global const uchar *block = row + i / 32 * 34;
    return (float)(char)block[2 + i % 32] * half_at(block);
}

// One head's d values to its row: crates/kernels/src/ops/kv.rs.
static inline void kv_store(const Ctx *c, local const float *x, uint d, global uchar *row) {
    if (KV_KIND == 0) {
        ROLLED for (uint i = c->tid; i < d; i += T) ((global float *)row)[i] = x[i];
    } else if (KV_KIND == 1) {
        ROLLED for (uint i = c->tid; i < d; i += T) vstore_half_rte(x[i], i, (global half *)row);
    } else {
        for (uint b = c->tid; b < d / 32; b += T) {
            float max = 0, bad = 0;
            for (uint i = 0; i < 32; i++) { max = fmax(max, fabs(x[b * 32 + i])); bad = fma(x[b * 32 + i], 0.0f, bad); }
            global uchar *block = row + b * 34;
            vstore_half_rte(max / 127.0f, 0, (global half *)block);
            float scale = half_at(block);
            bool none = isnan(bad) || scale == 0 || isinf(scale);
            if (none && !(scale == 0 && !isnan(bad))) vstore_half_rte(NAN, 0, (global half *)block);
            float inverse = 1.0f / scale;
            for (uint i = 0; i < 32; i++) {
                float v = none ? 0.0f : fmax(-127.0f, fmin(127.0f, x[b * 32 + i] * inverse));
                block[2 + i] = (uchar)(char)(int)rint(v);
            }
        }
    }
}

// A token's key and value of one head, as the product left them, and the angles of its position to local memory: k, then v,
// then angles. The caller waits for them.
static inline void bring(const Ctx *c, local float *k, uint t, uint head) {
    local const uint *P = c->P;
    const uint d = HEAD_DIM;
    global const float *from = FLOATS(c, P[IN], (ulong)t * P[IN_STRIDE] + head * d);
    ROLLED for (uint i = c->tid; i < d; i += T) { k[i] = from[P[K_AT] + i]; k[d + i] = from[P[V_AT] + i]; }
}
static inline void bring_angles(const Ctx *c, local float *angles, uint pos) {
    const uint n = 2 * c->P[PAIRS];
    global const float *from = FLOATS(c, c->P[ROPE], (ulong)(c->P[OF_STEP] ? pos - c->pos0 : pos) * n);
    ROLLED for (uint i = c->tid; i < n; i += T) angles[i] = from[i];
}
// What was brought, into the cache. Writers of the same row write the same.
static inline void append(const Ctx *c, local float *k, local const float *angles, uint t, uint head) {
    local const uint *P = c->P;
    const uint d = HEAD_DIM, pos = c->pos0 + t;
    norm_heads(c, k, 1, d, P[K_NORM]);
    rotate(c, k, 1, d, angles);
    kv_store(c, k, d, kv_row(c, head, pos, false));
    kv_store(c, k + d, d, kv_row(c, head, pos, true));
    GROUP_BARRIER;
}

// Prompts: keys and values of all tokens, before anyone attends to them.
static void rope_kv(const Ctx *c) {
    const uint heads = c->P[KV_HEADS], d = HEAD_DIM;
    local float *k = (local float *)c->L, *angles = k + 2 * d;
    for (uint item = c->group; item < c->n * heads; item += c->groups) {
        bring(c, k, item / heads, item % heads);
        bring_angles(c, angles, c->pos0 + item / heads);
        LOCAL_BARRIER;
        append(c, k, angles, item / heads, item % heads);
    }
}

// Keys or values (halves) of `count` positions to local memory, 16 bytes at a time; a row is 16 bytes longer there, so that
// work-items with a row each do not all want the same bank.
#define TILE_ROW(d) ((d) / 8 + 1)
static void to_tile(const Ctx *c, local uint4 *to, uint head, uint at, uint count, uint d, bool value) {
    const uint each = d / 8, all = count * each;
    for (uint from = c->tid; from < all; from += 8 * T) {
        // All of them are asked for before the first is there.
        uint4 v[8];
#pragma unroll
        for (uint u = 0; u < 8; u++) {
            const uint i = from + u * T;
            v[u] = i < all ? ((global const uint4 *)kv_row(c, head, at + i / each, value))[i % each] : (uint4)(0);
        }
#pragma unroll
        for (uint u = 0; u < 8; u++) {
            const uint i = from + u * T;
            if (i < all) to[i / each * TILE_ROW(d) + i % each] = v[u];
        }
    }
    LOCAL_BARRIER;
}

// In the order of the CPU's sixteen lanes.
#define V(i) lanes[i]
static inline float dot_tile(local const float *q, local const uint4 *row, uint d) {
    float lanes[16];
#pragma unroll
    for (uint j = 0; j < 16; j++) lanes[j] = 0;
#pragma unroll 2
    for (uint i = 0; i < d / 16; i++) {
        uint4 x[2];
        x[0] = row[2 * i];
        x[1] = row[2 * i + 1];
#pragma unroll
        for (uint j = 0; j < 2; j++) {
            uint words[4];
            words[0] = x[j].x; words[1] = x[j].y; words[2] = x[j].z; words[3] = x[j].w;
#pragma unroll
            for (uint k = 0; k < 8; k++) {
                float v = half_of(words[k / 2] >> (k % 2 * 16) & 0xffff);
                lanes[j * 8 + k] = fma(q[i * 16 + j * 8 + k], v, lanes[j * 8 + k]);
            }
        }
    }
    return FOLD16(V);
}
static inline float dot_row(const Ctx *c, local const float *q, global const uchar *row, uint d) {
    float lanes[16];
    for (uint j = 0; j < 16; j++) lanes[j] = 0;
    for (uint i = 0; i < d; i += 16) {
        for (uint j = 0; j < 16; j++) if (i + j < d) lanes[j] = fma(q[i + j], kv_value(c, row, i + j), lanes[j]);
    }
    return FOLD16(V);
}

#if PTX
// One head's scores to weights, by a team: what it has found so far in m and l, and what the past is to be multiplied with.
static void softmax(const Ctx *c, local float *s, uint count, local float *m, local float *l, local float *correct, bool whole) {
    const float before = *m, sum_before = *l;
    float shift = before;
#pragma unroll 4
    for (uint j = c->lane; j < count; j += 32) shift = fmax(shift, s[j]);
    for (uint o = 16; o > 0; o >>= 1) shift = fmax(shift, lane_xor(shift, o));
    if (isinf(shift)) shift = 0;
#pragma unroll 4
    for (uint j = c->lane; j < count; j += 32) s[j] = exp_(s[j] - shift);
    TEAM_BARRIER;
    // The sum in the order of the CPU's sixteen lanes; the team's other half does the same.
    const uint lane = c->lane % 16;
    float sum = 0;
    uint j = lane;
    for (; j + 112 < count; j += 128) {
        float v[8];
#pragma unroll
        for (uint k = 0; k < 8; k++) v[k] = s[j + 16 * k];
#pragma unroll
        for (uint k = 0; k < 8; k++) sum += v[k];
    }
    for (; j < count; j += 16) sum += s[j];
    for (uint o = 8; o > 0; o >>= 1) sum += lane_xor(sum, o);
    const float factor = exp_(before - shift), all = sum_before * factor + sum;
    TEAM_BARRIER;
    if (whole)
#pragma unroll 4
        for (uint j = c->lane; j < count; j += 32) s[j] /= all;
    if (c->lane == 0) {
        *m = shift;
        *l = all;
        *correct = factor;
    }
}
#endif

#if PTX
// So many bytes from `from` on to the device's cache; each work-item of a team has its own, or none. Whole lines of 16 bytes.
static ALWAYS void to_cache(const Ctx *c, global const uchar *from, uint bytes) {
#if SM >= 90
    if (bytes > 0) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" : : "l"((ulong)from), "r"(bytes));
#else
    ROLLED for (uint lane = 0; lane < LANES; lane++) {
        const uint all = as_uint(lane_from(as_float(bytes), lane));
        if (all == 0) continue;
        const uint low = as_uint(lane_from(as_float((uint)(ulong)from), lane)), high = as_uint(lane_from(as_float((uint)((ulong)from >> 32)), lane));
        ROLLED for (uint i = c->lane * 128; i < all; i += LANES * 128)
            asm volatile("prefetch.global.L2 [%0];" : : "l"(((ulong)high << 32 | low) + i));
    }
#endif
}
// Keys and values that a work-group will read, and the angles: a work-item of a team asks for whole pages.
static ALWAYS void attend_ahead(const Ctx *c) {
    local const uint *P = c->P;
    const uint tiles = (P[HEADS] / P[KV_HEADS] + P[TILE] - 1) / P[TILE];
    if (c->n > 1 || KV_KIND == 2 || c->group >= P[KV_HEADS] * tiles * c->splits) return;
    const uint split = c->group % c->splits, head = c->group / c->splits / tiles % P[KV_HEADS];
    const uint pos = c->pos0, from = P[WINDOW] != 0 && pos + 1 > P[WINDOW] ? pos + 1 - P[WINDOW] : 0;
    const uint chunk = (pos + 1 - from + c->splits - 1) / c->splits, start = from + split * chunk, end = min(start + chunk, pos + 1);
    global const float *angles = FLOATS(c, P[ROPE], (ulong)(P[OF_STEP] ? 0 : pos) * 2 * P[PAIRS]);
    to_cache(c, (global const uchar *)angles, c->lane == 0 ? P[PAIRS] * 8 & ~15u : 0);
    ROLLED for (uint first = start / PAGE; first * PAGE < end; first += LANES) {
        const uint page = min(first + c->lane, (end - 1) / PAGE), bytes = page == first + c->lane ? PAGE * P[ROW_BYTES] : 0;
        to_cache(c, kv_row(c, head, page * PAGE, false), bytes);
        to_cache(c, kv_row(c, head, page * PAGE, true), bytes);
    }
}
#endif

static void attend(const Ctx *c) {
    local const uint *P = c->P;
    const uint d = HEAD_DIM, kv_heads = P[KV_HEADS], group = P[HEADS] / kv_heads, tile = P[TILE];
    const uint tiles = (group + tile - 1) / tile, each = kv_heads * tiles * c->splits;
    local float *q = (local float *)c->L, *acc = q + tile * d, *scores = acc + tile * d, *m = scores + tile * SPAN;
    local float *l = m + tile, *correct = l + tile, *lanes = correct + tile, *k = lanes + 16 * tile, *angles = k + 2 * d;
    local uint4 *rows = (local uint4 *)c->L + (P[KV_TILE] != 0 ? P[ROWS_AT] : 0);
    const bool tiled = KV_KIND == 1 && HEAD_DIM % 16 == 0 && P[KV_TILE] != 0;
    const uint step = tiled ? P[KV_TILE] : SPAN;
    for (uint item = c->group; item < c->n * each; item += c->groups) {
        const uint t = item / each, split = item % c->splits, g = item / c->splits % tiles, head = item / c->splits / tiles % kv_heads;
        const uint pos = c->pos0 + t, from = P[WINDOW] != 0 && pos + 1 > P[WINDOW] ? pos + 1 - P[WINDOW] : 0;
        const uint chunk = (pos + 1 - from + c->splits - 1) / c->splits;
        const uint start = min(from + split * chunk, pos + 1), end = min(start + chunk, pos + 1);
        // All positions at once: then probabilities are divided before they are summed up, as on the CPU.
        const bool whole = c->splits == 1 && pos + 1 - from <= SPAN;
        const uint first = head * group + g * tile, n = min(tile, group - g * tile);
        global const float *x = FLOATS(c, P[IN], (ulong)t * P[IN_STRIDE] + P[IN_AT] + first * d);
        ROLLED for (uint i = c->tid; i < n * d; i += T) { q[i] = x[i]; acc[i] = 0; }
        ROLLED for (uint i = c->tid; i < n; i += T) { m[i] = -INFINITY; l[i] = 0; }
        const bool fresh = P[FRESH] && end == pos + 1;
        if (fresh) bring(c, k, t, head);
        bring_angles(c, angles, pos);
        LOCAL_BARRIER;
        norm_heads(c, q, n, d, P[NORM]);
        rotate(c, q, n, d, angles);
        if (fresh) append(c, k, angles, t, head);
        for (uint at = start; at < end; at += SPAN) {
            const uint count = min((uint)SPAN, end - at);
            for (uint base = 0; base < count; base += step) {
                const uint some = min(step, count - base);
                if (tiled) to_tile(c, rows, head, at + base, some, d, false);
                for (uint i = c->tid; i < n * some; i += T) {
                    uint h = i / some, j = i % some;
                    float x = tiled ? dot_tile(q + h * d, rows + j * TILE_ROW(d), d) : dot_row(c, q + h * d, kv_row(c, head, at + base + j, false), d);
                    scores[h * SPAN + base + j] = x * as_float(P[A_SCALE]);
                }
                LOCAL_BARRIER;
            }
#if PTX
            for (uint h = c->team; h < n; h += TEAMS) softmax(c, scores + h * SPAN, count, m + h, l + h, correct + h, whole);
            LOCAL_BARRIER;
#else
            for (uint i = c->tid; i < n * 16; i += T) {
                float max = -INFINITY;
                for (uint j = i % 16; j < count; j += 16) max = fmax(max, scores[i / 16 * SPAN + j]);
                lanes[i] = max;
            }
            LOCAL_BARRIER;
            for (uint h = c->tid; h < n; h += T) {
                float shift = m[h];
                for (uint j = 0; j < 16; j++) shift = fmax(shift, lanes[h * 16 + j]);
                if (isinf(shift)) shift = 0;
                correct[h] = exp_(m[h] - shift);
                m[h] = shift;
            }
            LOCAL_BARRIER;
            for (uint i = c->tid; i < n * count; i += T) {
                uint h = i / count, j = i % count;
                scores[h * SPAN + j] = exp_(scores[h * SPAN + j] - m[h]);
            }
            LOCAL_BARRIER;
            for (uint i = c->tid; i < n * 16; i += T) {
                float sum = 0;
                for (uint j = i % 16; j < count; j += 16) sum += scores[i / 16 * SPAN + j];
                lanes[i] = sum;
            }
            LOCAL_BARRIER;
            for (uint h = c->tid; h < n; h += T) l[h] = l[h] * correct[h] + fold16(lanes + 16 * h);
            LOCAL_BARRIER;
            if (whole) {
                for (uint i = c->tid; i < n * count; i += T) scores[i / count * SPAN + i % count] /= l[i / count];
                LOCAL_BARRIER;
            }
#endif
            for (uint base = 0; base < count; base += step) {
                const uint some = min(step, count - base);
                if (tiled) to_tile(c, rows, head, at + base, some, d, true);
                for (uint i = c->tid; i < n * d; i += T) {
                    uint h = i / d, e = i % d;
                    local const float *s = scores + h * SPAN + base;
                    float a = base > 0 ? acc[i] : whole ? 0.0f : acc[i] * correct[h];
                    if (tiled) {
                        local const ushort *v = (local const ushort *)rows + e;
#pragma unroll 16
                        for (uint j = 0; j < some; j++) a = fma(s[j], half_of(v[j * 8 * TILE_ROW(d)]), a);
                    } else {
                        for (uint j = 0; j < some; j++) a = fma(s[j], kv_value(c, kv_row(c, head, at + base + j, true), e), a);
                    }
                    acc[i] = a;
                }
                LOCAL_BARRIER;
            }
        }
        if (c->splits == 1) {
            global float *out = FLOATS(c, P[A_OUT], (ulong)t * P[A_OUT_STRIDE] + P[A_OUT_AT] + first * d);
            ROLLED for (uint i = c->tid; i < n * d; i += T) out[i] = whole ? acc[i] : acc[i] / l[i / d];
        } else {
            ROLLED for (uint i = c->tid; i < n * d; i += T) {
                uint h = i / d, e = i % d;
                global float *out = FLOATS(c, P[PARTIAL], ((first + h) * P[MAX_SPLITS] + split) * (d + 2));
                out[2 + e] = acc[i];
                if (e == 0) { out[0] = m[h]; out[1] = l[h]; }
            }
        }
        LOCAL_BARRIER;
    }
}

#if !SINGLE && PTX && LANES == 32 && TEAMS == 8 && KV_KIND == 1 && (HEAD_DIM == 64 || HEAD_DIM == 128 || HEAD_DIM == 256)
// The same for prompts: eight queries, of as many heads as share keys and then of neighbouring tokens, walk over the cache together. The
// next keys or values are on their way to registers while those in local memory are used. A score is computed by one work-item and
// a value of the result by another, each in the order that `attend` has. Without a window that begins later for later tokens.
#define MANY_TOKENS 1
#define QUERIES 8
#define STEP (HEAD_DIM == 256 ? 32 : 64)     // positions in local memory
#define KEYS_EACH (STEP / 32)                // queries that a work-item multiplies with its key
#define OUT_EACH (HEAD_DIM / 64)             // queries of which a work-item has two neighbouring values
#define EACH_ROW (HEAD_DIM / 8)              // sixteens of bytes in a row
#define LOADS (STEP * EACH_ROW / T)
typedef struct { uint4 of[LOADS]; } Rows;

static ALWAYS void load_rows(const Ctx *c, Rows *rows, uint head, uint at, uint end, bool value) {
#pragma unroll
    for (uint u = 0; u < LOADS; u++) {
        const uint i = c->tid + u * T, pos = at + i / EACH_ROW;
        rows->of[u] = pos < end ? ((global const uint4 *)kv_row(c, head, pos, value))[i % EACH_ROW] : (uint4)(0);
    }
}
static ALWAYS void put_rows(const Ctx *c, const Rows *rows, local uint4 *to) {
#pragma unroll
    for (uint u = 0; u < LOADS; u++) {
        const uint i = c->tid + u * T;
        to[i / EACH_ROW * TILE_ROW(HEAD_DIM) + i % EACH_ROW] = rows->of[u];
    }
    LOCAL_BARRIER;
}

static void attend_many(const Ctx *c) {
    local const uint *P = c->P;
    const uint d = HEAD_DIM, kv_heads = P[KV_HEADS], group = P[HEADS] / kv_heads, tile = P[TILE], tiles = (group + tile - 1) / tile;
    const uint tokens = QUERIES / tile, items = (c->n + tokens - 1) / tokens * kv_heads * tiles, pairs = P[PAIRS];
    local float *q = (local float *)c->L, *scores = q + QUERIES * d, *m = scores + QUERIES * SPAN, *l = m + QUERIES, *correct = l + QUERIES;
    local uint4 *rows = (local uint4 *)(m + 4 * QUERIES);
    // Of the results, the first of this work-item's queries and of its values.
    const uint out_query = c->tid / (d / 2) * OUT_EACH, e = c->tid % (d / 2) * 2;
    ROLLED for (uint item = c->group; item < items; item += c->groups) {
        const uint g = item % tiles, head = item / tiles % kv_heads, t0 = item / tiles / kv_heads * tokens;
        const uint first = head * group + g * tile, n = min(tile, group - g * tile), last = min(t0 + tokens, c->n) - 1;
        // What is no query repeats another, and is not written.
#define TOKEN_OF(h) min(t0 + (h) / tile, last)
#define END_OF(h) (c->pos0 + TOKEN_OF(h) + 1)
#define HEAD_OF(h) (first + min((h) % tile, n - 1))
        ROLLED for (uint i = c->tid; i < QUERIES * d; i += T)
            q[i] = FLOATS(c, P[IN], (ulong)TOKEN_OF(i / d) * P[IN_STRIDE] + P[IN_AT] + HEAD_OF(i / d) * d)[i % d];
        if (c->tid < QUERIES) { m[c->tid] = -INFINITY; l[c->tid] = 0; }
        const uint all = END_OF(QUERIES - 1);
        Rows coming;
        load_rows(c, &coming, head, 0, all, false);
        LOCAL_BARRIER;
        norm_heads(c, q, QUERIES, d, P[NORM]);
        ROLLED for (uint i = c->tid; i < QUERIES * pairs; i += T) {
            const uint h = i / pairs, k = i % pairs, a = h * d + (P[HALVES] ? k : 2 * k), b = P[HALVES] ? a + pairs : a + 1;
            global const float *angles = FLOATS(c, P[ROPE], (ulong)(P[OF_STEP] ? TOKEN_OF(h) : END_OF(h) - 1) * 2 * pairs);
            const float co = angles[k], si = angles[pairs + k], x0 = q[a], x1 = q[b];
            q[a] = fma(x1, -si, x0 * co);
            q[b] = fma(x0, si, x1 * co);
        }
        float2 sums[OUT_EACH];
#pragma unroll
        for (uint k = 0; k < OUT_EACH; k++) sums[k] = (float2)(0.0f);
        ROLLED for (uint at = 0; at < all; at += SPAN) {
            const uint end = min(at + SPAN, all);
            ROLLED for (uint from = at; from < end; from += STEP) {
                put_rows(c, &coming, rows);
                const bool more = from + STEP < end;
                load_rows(c, &coming, head, more ? from + STEP : at, end, !more);
                const uint key = c->team % KEYS_EACH * 32 + c->lane, query = c->team / KEYS_EACH * KEYS_EACH;
                local const uint4 *row = rows + key * TILE_ROW(d);
                float lanes_of[KEYS_EACH][16];
#pragma unroll
                for (uint j = 0; j < 16; j++)
#pragma unroll
                    for (uint k = 0; k < KEYS_EACH; k++) lanes_of[k][j] = 0;
#pragma unroll 2
                for (uint i = 0; i < d / 8; i += 2) {
#pragma unroll
                    for (uint side = 0; side < 2; side++) {
                        const uint4 x = row[i + side];
                        float v[8];
                        v[0] = half_of(x.x & 0xffff); v[1] = half_of(x.x >> 16); v[2] = half_of(x.y & 0xffff); v[3] = half_of(x.y >> 16);
                        v[4] = half_of(x.z & 0xffff); v[5] = half_of(x.z >> 16); v[6] = half_of(x.w & 0xffff); v[7] = half_of(x.w >> 16);
#pragma unroll
                        for (uint k = 0; k < KEYS_EACH; k++) {
                            local const float4 *y = (local const float4 *)(q + (query + k) * d) + 2 * (i + side);
                            const float4 low = y[0], high = y[1];
                            float *sum = lanes_of[k] + side * 8;
                            sum[0] = fma(low.x, v[0], sum[0]); sum[1] = fma(low.y, v[1], sum[1]);
                            sum[2] = fma(low.z, v[2], sum[2]); sum[3] = fma(low.w, v[3], sum[3]);
                            sum[4] = fma(high.x, v[4], sum[4]); sum[5] = fma(high.y, v[5], sum[5]);
                            sum[6] = fma(high.z, v[6], sum[6]); sum[7] = fma(high.w, v[7], sum[7]);
                        }
                    }
                }
#pragma unroll
                for (uint k = 0; k < KEYS_EACH; k++) {
                    const float *lanes = lanes_of[k];
                    scores[(query + k) * SPAN + from - at + key] = FOLD16(V) * as_float(P[A_SCALE]);
                }
                LOCAL_BARRIER;
            }
            // A team has a query. Earlier tokens may have no more positions.
            const uint own = END_OF(c->team);
            if (own > at) softmax(c, scores + c->team * SPAN, min(own - at, (uint)SPAN), m + c->team, l + c->team, correct + c->team, own <= SPAN);
            LOCAL_BARRIER;
#pragma unroll
            for (uint k = 0; k < OUT_EACH; k++)
                if (at > 0 && END_OF(out_query + k) > at) sums[k] *= correct[out_query + k];
            ROLLED for (uint from = at; from < end; from += STEP) {
                put_rows(c, &coming, rows);
                if (from + STEP < end) load_rows(c, &coming, head, from + STEP, end, true);
                else load_rows(c, &coming, head, end, all, false);
                local const uint *v = (local const uint *)rows + e / 2;
                local const float *s = scores + out_query * SPAN + from - at;
                const uint some = min(end - from, (uint)STEP);
                // The first query of a work-item has the fewest positions.
                const uint own = END_OF(out_query), common = own > from ? min(own - from, some) : 0;
                uint j = 0;
#define TWO_OF(j) const uint two = v[(j) * 4 * TILE_ROW(d)]; const float x0 = half_of(two & 0xffff), x1 = half_of(two >> 16);
#define ADD_UP(k, w) { sums[k].x = fma(w, x0, sums[k].x); sums[k].y = fma(w, x1, sums[k].y); }
                ROLLED for (; j + 4 <= common; j += 4) {
                    float4 w[OUT_EACH];
#pragma unroll
                    for (uint k = 0; k < OUT_EACH; k++) w[k] = *(local const float4 *)(s + k * SPAN + j);
#pragma unroll
                    for (uint i = 0; i < 4; i++) {
                        TWO_OF(j + i)
#pragma unroll
                        for (uint k = 0; k < OUT_EACH; k++) ADD_UP(k, i == 0 ? w[k].x : i == 1 ? w[k].y : i == 2 ? w[k].z : w[k].w)
                    }
                }
                ROLLED for (; j < some; j++) {
                    TWO_OF(j)
#pragma unroll
                    for (uint k = 0; k < OUT_EACH; k++) if (from + j < END_OF(out_query + k)) ADD_UP(k, s[k * SPAN + j])
                }
#undef TWO_OF
#undef ADD_UP
                LOCAL_BARRIER;
            }
        }
#pragma unroll
        for (uint k = 0; k < OUT_EACH; k++) {
            const uint h = out_query + k;
            if (t0 + h / tile > last || h % tile >= n || h >= tokens * tile) continue;
            global float *out = FLOATS(c, P[A_OUT], (ulong)TOKEN_OF(h) * P[A_OUT_STRIDE] + P[A_OUT_AT] + HEAD_OF(h) * d + e);
            out[0] = END_OF(h) <= SPAN ? sums[k].x : sums[k].x / l[h];
            out[1] = END_OF(h) <= SPAN ? sums[k].y : sums[k].y / l[h];
        }
        LOCAL_BARRIER;
    }
#undef TOKEN_OF
#undef END_OF
#undef HEAD_OF
}
#else
#define MANY_TOKENS 0
#endif

// Joins what the splits of one token have.
static void combine(const Ctx *c) {
    local const uint *P = c->P;
    const uint d = HEAD_DIM;
    global float *out = FLOATS(c, P[A_OUT], P[A_OUT_AT]);
    ROLLED for (uint i = c->group * T + c->tid; i < P[HEADS] * d; i += c->groups * T) {
        uint h = i / d, e = i % d;
        global const float *part = FLOATS(c, P[PARTIAL], h * P[MAX_SPLITS] * (d + 2));
        float max = -INFINITY, sum = 0, l = 0;
        ROLLED for (uint s = 0; s < c->splits; s++) if (part[s * (d + 2) + 1] > 0) max = fmax(max, part[s * (d + 2)]);
        ROLLED for (uint s = 0; s < c->splits; s++) {
            global const float *p = part + s * (d + 2);
            if (!(p[1] > 0) && !isnan(p[1])) continue;
            float f = exp_(p[0] - max);
            sum = fma(p[2 + e], f, sum);
            l = fma(p[1], f, l);
        }
        out[i] = sum / l;
    }
}
