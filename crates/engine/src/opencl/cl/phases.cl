// The phases that are neither a product nor attention, and the two ways to run a table of phases.

#define EMBED 1
#define QUANTIZE 2
#define MATVEC 3
#define MATMUL 4
#define ROPE_KV 5
#define ATTEND 6
#define COMBINE 7
#define ADD_NORM 8
#define GLU 9
#define ARGMAX 10
#define CHOOSE 11

// X = scale * row of the table. Words: SCALE of product 0; TOKENS line.
#define TOKENS 8
static void embed(const Ctx *c) {
    local const uint *p = c->P + PROD;
    const uint cols = c->P[COLS];
    ROLLED for (uint i = c->group * T + c->tid; i < c->n * cols; i += c->groups * T) {
        uint t = i / cols;
        // A step of one token without one takes what the step before has chosen.
        uint token = c->token != NONE ? c->token : ((global const uint *)LINE(c, c->P[TOKENS]))[c->n == 1 ? (c->pos0 - 1) % 2 : t];
        float w = weight_of(c, p, min(token, p[ROWS_OF] - 1), i % cols) * as_float(p[TENSOR]);
        FLOATS(c, p[OUT], 0)[(ulong)t * p[OUT_STRIDE] + i % cols] = w * as_float(p[SCALE]);
    }
}

// Inputs of products with several columns: records, or normalized floats to OUT of product 0.
static void quantize_all(const Ctx *c) {
    local const uint *P = c->P;
    const uint t0 = first_token(c), nt = count_tokens(c);
    for (uint i = c->group; i < nt; i += c->groups) {
        global const float *x = FLOATS(c, P[IN], (ulong)(t0 + i) * P[IN_STRIDE] + P[IN_AT]);
        if (P[GRAIN] == 3) {
            float factor = rms_factor(c, x, P[COLS], as_float(P[EPS]));
            global const float *w = FLOATS(c, P[NORM], 0);
            global float *out = FLOATS(c, P[PROD + OUT], (ulong)(t0 + i) * P[PROD + OUT_STRIDE]);
            for (uint k = c->tid; k < P[COLS]; k += T) out[k] = x[k] * factor * w[k];
        } else {
            quantize_global(c, x, LINE(c, P[REC]) + (ulong)i * P[REC_STRIDE], (local float *)c->L);
        }
        GROUP_BARRIER;
    }
}

#if SINGLE
static void matvec(const Ctx *c) {
    local const uint *P = c->P;
    // Without a unit of its own a work-group need not know the input.
    if (!is_dealt(c, P) && first_unit(c, c->group) == first_unit(c, c->group + 1)) return;
    quantize_local(c, FLOATS(c, P[IN], P[IN_AT] + first_token(c) * P[IN_STRIDE]), c->L, (local float *)(c->L + P[REC_STRIDE]));
    units_local(c, c->L, 0);
}
#endif

static void matmul(const Ctx *c) {
    local const uint *P = c->P;
    global const uchar *x = LINE(c, P[REC]);
    uint stride = P[REC_STRIDE];
    if (P[GRAIN] == 3) {
        x = (global const uchar *)FLOATS(c, P[IN], (ulong)first_token(c) * P[IN_STRIDE] + P[IN_AT]);
        stride = P[IN_STRIDE] * 4;
    }
#if SINGLE
    units_one(c, x, stride);
#else
    if (count_tokens(c) == 1) units_one(c, x, stride);
#if TILES
    else if (P[FLAGS] & TILES) matmul_tiles(c, x, stride);
#endif
    else units_many(c, x, stride);
#endif
}

// X += norm(IN) * weights.
static void add_norm(const Ctx *c) {
    local const uint *P = c->P;
    const uint cols = P[COLS];
    // One token is shared out among all work-groups, each of which finds the same factor; of several each has its own.
    for (uint t = c->n == 1 ? 0 : c->group; t < c->n; t += c->n == 1 ? 1 : c->groups) {
        global const float *x = FLOATS(c, P[IN], (ulong)t * P[IN_STRIDE] + P[IN_AT]);
        float factor = rms_factor(c, x, cols, as_float(P[EPS]));
        global const float *w = FLOATS(c, P[NORM], 0);
        global float *out = FLOATS(c, P[PROD + OUT], (ulong)t * P[PROD + OUT_STRIDE]);
        uint from = c->n == 1 ? c->group * T + c->tid : c->tid, step = c->n == 1 ? c->groups * T : T;
        ROLLED for (uint i = from; i < cols; i += step) out[i] += x[i] * factor * w[i];
    }
}

static void glu(const Ctx *c) {
    local const uint *P = c->P;
    const uint cols = P[COLS];
    ROLLED for (uint i = c->group * T + c->tid; i < c->n * cols; i += c->groups * T) {
        uint t = i / cols, k = i % cols;
        global const float *gate = FLOATS(c, P[IN], (ulong)t * P[IN_STRIDE] + P[IN_AT]);
        FLOATS(c, P[PROD + OUT], 0)[(ulong)t * P[PROD + OUT_STRIDE] + k] = activate(P[ACTIVATION], gate[k]) * gate[cols + k];
    }
}

// The largest of a work-group's share of the logits and where it is; of equals the first. NaN is passed over.
static void best(const Ctx *c, float *most, uint *where, float x, uint i) {
    if (x > *most || (x == *most && i < *where)) { *most = x; *where = i; }
}
static void best_of_group(const Ctx *c, float *most, uint *where) {
    local float *values = (local float *)c->L;
    local uint *places = (local uint *)(values + T);
    values[c->tid] = *most;
    places[c->tid] = *where;
    LOCAL_BARRIER;
    ROLLED for (uint n = T; n > 1; n = (n + 1) / 2) {
        uint other = c->tid + (n + 1) / 2;
        if (other < n) {
            best(c, most, where, values[other], places[other]);
            values[c->tid] = *most;
            places[c->tid] = *where;
        }
        LOCAL_BARRIER;
    }
}
static void argmax(const Ctx *c) {
    local const uint *P = c->P;
    float most = -INFINITY;
    uint where = NONE;
    global const float *x = FLOATS(c, P[IN], 0);
    ROLLED for (uint i = c->group * T + c->tid; i < P[COLS]; i += c->groups * T) best(c, &most, &where, x[i], i);
    best_of_group(c, &most, &where);
    if (c->tid == 0) {
        FLOATS(c, P[REC], 0)[2 * c->group] = most;
        FLOATS(c, P[REC], 0)[2 * c->group + 1] = as_float(where);
    }
}
static void choose(const Ctx *c) {
    if (c->group != 0) return;
    float most = -INFINITY;
    uint where = NONE;
    global const float *x = FLOATS(c, c->P[REC], 0);
    ROLLED for (uint i = c->tid; i < c->P[REC_STRIDE]; i += T) best(c, &most, &where, x[2 * i], as_uint(x[2 * i + 1]));
    best_of_group(c, &most, &where);
    if (c->tid == 0) ((global uint *)LINE(c, c->P[TOKENS]))[(c->pos0 + c->n - 1) % 2] = where;
}

// The best so many (c->best) of a list, for the host to draw from. A rank is a logit as an integer in the same order, and below it
// the id the other way round, so that of equals the first ranks higher and no two tokens rank alike. Both zeros are equal. NaN and
// infinity rank above all numbers: that the model has computed nonsense must not be passed over.
#define BEST 9         // line of the results: logit and id of the best, then each work-group's own best
#define EACH_BEST 10   // room for those
#define FIRST_OF(group, n, groups) ((uint)((ulong)(group) * (n) / (groups)))
static inline ulong rank_of(float x, uint id) {
    const uint bits = x == 0.0f ? 0 : as_uint(x);
    const uint order = isnan(x) || x == INFINITY ? NONE : bits >> 31 ? ~bits : bits | 0x80000000u;
    return (ulong)order << 32 | (uint)~id;
}
// Item i of a list: one of the logits from `first` on, or where `logits` is false a pair.
static inline ulong item_of(global const float *x, uint i, uint first, bool logits, float *value, uint *id) {
    *value = logits ? x[first + i] : x[2 * i];
    *id = logits ? first + i : as_uint(x[2 * i + 1]);
    return rank_of(*value, *id);
}
// The `k` highest of `n` items to `out` as pairs, in any order; k <= n. The bytes of the lowest rank among them are found from the top
// down, each by counting how many of those that agree so far have which, until all that agree are wanted.
static void select_best(const Ctx *c, global const float *x, uint n, uint first, bool logits, uint k, global float *out) {
    volatile local uint *counts = (volatile local uint *)c->L, *sums = counts + 256, *state = sums + 16;
    ulong low = 0;
    uint wanted = k;
    float value;
    uint id;
    ROLLED for (uint shift = 64; shift > 0 && wanted > 0;) {
        const ulong agreed = shift == 64 ? 0 : ~(ulong)0 << shift;
        shift -= 8;
        ROLLED for (uint i = c->tid; i < 256; i += T) counts[i] = 0;
        LOCAL_BARRIER;
        ROLLED for (uint i = c->tid; i < n; i += T) {
            const ulong rank = item_of(x, i, first, logits, &value, &id);
            if ((rank & agreed) == low) atomic_inc(counts + (uint)(rank >> shift & 255));
        }
        LOCAL_BARRIER;
        ROLLED for (uint i = c->tid; i < 16; i += T) {
            uint sum = 0;
            ROLLED for (uint j = 0; j < 16; j++) sum += counts[16 * i + j];
            sums[i] = sum;
        }
        LOCAL_BARRIER;
        if (c->tid == 0) {
            uint left = wanted, i = 15, j = 15;
            ROLLED for (; i > 0 && sums[i] < left; i--) left -= sums[i];
            ROLLED for (; j > 0 && counts[16 * i + j] < left; j--) left -= counts[16 * i + j];
            state[0] = 16 * i + j;
            // 0: everything that agrees up to this byte is among the best.
            state[1] = counts[16 * i + j] == left ? 0 : left;
        }
        LOCAL_BARRIER;
        low |= (ulong)state[0] << shift;
        wanted = state[1];
        LOCAL_BARRIER;
    }
    if (c->tid == 0) state[0] = 0;
    LOCAL_BARRIER;
    ROLLED for (uint i = c->tid; i < n; i += T) {
        if (item_of(x, i, first, logits, &value, &id) < low) continue;
        const uint at = atomic_inc(state);
        out[2 * at] = value;
        out[2 * at + 1] = as_float(id);
    }
}
// Each work-group's best of its share of the logits; what is left of its room is less than any.
static void best_of_share(const Ctx *c) {
    local const uint *P = c->P;
    const uint from = FIRST_OF(c->group, P[COLS], c->groups), n = FIRST_OF(c->group + 1, P[COLS], c->groups) - from;
    const uint room = min(c->best, P[EACH_BEST]), k = min(room, n);
    global float *out = FLOATS(c, P[BEST], 2 * (c->best + c->group * room));
    select_best(c, FLOATS(c, P[IN], 0), n, from, true, k, out);
    ROLLED for (uint i = k + c->tid; i < room; i += T) {
        out[2 * i] = -INFINITY;
        out[2 * i + 1] = as_float(NONE);
    }
}
// The best of those.
static void best_of_all(const Ctx *c) {
    if (c->group != 0) return;
    global float *found = FLOATS(c, c->P[BEST], 0);
    select_best(c, found + 2 * c->best, c->groups * min(c->best, c->P[EACH_BEST]), 0, false, c->best, found);
}

static void run_phase(const Ctx *c) {
    switch (c->P[KIND]) {
        case EMBED: embed(c); break;
        case MATMUL: matmul(c); break;
#if MANY_TOKENS
        case ATTEND: if (c->P[MANY] && (c->P[WINDOW] == 0 || c->pos0 + c->n <= c->P[WINDOW])) attend_many(c); else attend(c); break;
#else
        case ATTEND: attend(c); break;
#endif
        case ADD_NORM: add_norm(c); break;
        case GLU: glu(c); break;
        case QUANTIZE: quantize_all(c); break;
#if SINGLE
        case MATVEC: matvec(c); break;
        case COMBINE: combine(c); break;
#else
        case ROPE_KV: rope_kv(c); break;
#endif
        case ARGMAX: if (c->best > 0) best_of_share(c); else argmax(c); break;
        case CHOOSE: if (c->best > 0) best_of_all(c); else choose(c); break;
    }
}

static inline bool has_products(uint kind) { return kind == EMBED || kind == MATVEC || kind == MATMUL; }

// A phase's words on their way to local memory, the lines of its matrices in place of their numbers: two answers of the
// memory one after the other. So a work-item that has a word to bring asks for it four phases early, for the line a phase later, and
// puts it down two phases early, when it is known what to bring to the cache. Only where a launch has many phases. (Intel's compiler for
// CPUs, 2026.2, made wrong code of it in sub-groups.)
#define HAS_RING (PTX && T >= PHASE_WORDS)
#if HAS_RING
#define RING 3
typedef struct { uint word, raw, kind; } Coming;
static inline void bring_words(Coming *w, global const uint *words, global const uint *lines, uint phase, uint last, uint tid) {
    const bool matrix = tid >= PROD && (tid - PROD) % PROD_WORDS == MAT && has_products(w->kind) && w->raw != NONE;
    w->word = matrix ? lines[w->raw] : w->raw;
    if (tid < PHASE_WORDS && phase < last) {
        w->raw = words[phase * PHASE_WORDS + tid];
        w->kind = words[phase * PHASE_WORDS + KIND];
    }
}
#else
#define RING 1
static void fetch(local uint *to, global const uint *table, global const uint *lines, uint tid) {
    for (uint i = tid; i < PHASE_WORDS; i += T) {
        const bool matrix = i >= PROD && (i - PROD) % PROD_WORDS == MAT && has_products(table[KIND]) && table[i] != NONE;
        to[i] = matrix ? lines[table[i]] : table[i];
    }
}
#endif

#if PTX
// What this work-group will read first of weights, and of keys and values, in the phase P after the next one, on its way to the
// device's cache while others are waited for. One team does that, another looks whether they have come.
#define AHEAD 131072
static ALWAYS void fetch_ahead(const Ctx *now, local const uint *P) {
    Ctx then = *now;
    const Ctx *c = &then;
    then.P = P;
    if (P[KIND] == ATTEND) attend_ahead(c);
    if (P[KIND] != MATVEC) return;
    const bool normed = P[NORM] != NONE;
    to_cache(c, (global const uchar *)FLOATS(c, normed ? P[NORM] : 0, 0), normed && c->lane == 0 ? P[COLS] * 4 & ~15u : 0);
    // Of those in words.cl each work-group has an even share of rows or pairs, of others it begins with a unit for each team.
    const bool pair = P[FLAGS] & 2, words = P[FLAGS] >> KNOWN && P[FLAGS] & 32, dealt = !words && is_dealt(c, P);
    const uint each = words ? 1 : pair ? ROWS / 2 : ROWS;
    uint from, to;
    if (words) {
        if (c->group < P[BUSY]) return;
        const uint group = c->group - P[BUSY], left = P[UNITS] - P[EACH_GROUP] * (c->groups - P[BUSY]);
        from = group * P[EACH_GROUP] + min(group, left);
        to = from + P[EACH_GROUP] + (group < left);
    } else {
        from = dealt ? c->group * TEAMS : first_unit(c, c->group);
        to = dealt ? from + TEAMS : first_unit(c, c->group + 1);
    }
    // A work-item has a product.
    const uint product = min(c->lane, P[NPROD] - 1);
    local const uint *p = P + PROD;
    uint before = 0;
    ROLLED for (uint k = 0; k < product; k++, p += PROD_WORDS) before += pair ? 0 : (p[ROWS_OF] + each - 1) / each;
    const uint n = (p[ROWS_OF] + each - 1) / each, first = max(from, before), end = min(to, before + n);
    const bool some = first < end && c->lane < P[NPROD];
    const ulong stride = stride0(p[FMT], P[COLS]), at = some ? (ulong)(first - before) * each * stride : 0;
    const ulong last = min((ulong)(end - before) * each, (ulong)p[ROWS_OF]) * stride;
    to_cache(c, LINE(c, p[MAT]) + at, some ? (uint)min(last - at, (ulong)AHEAD) : 0);
}
#endif

#define NEXT(p) ((p) == P + (RING - 1) * PHASE_WORDS ? P : (p) + PHASE_WORDS)
// Phases first..last of a table. Several of them in one launch need a device on which all work-groups run at once: they
// meet at a counter between two phases. One work-group may always run all.
#if !SUB
#define WITH_TEAM
#endif
kernel WITH_TEAM __attribute__((reqd_work_group_size(T, 1, 1))) void phases(
    global uchar *A, uint table, uint lines, uint pages, uint first, uint last, uint pos0, uint n, uint token, uint out0,
    uint nout, uint splits, uint best, volatile global uint *sync, local uint4 *room) {
    local uint P[RING * PHASE_WORDS];
    local float red[RED + 144] __attribute__((aligned(16)));
    local uint lost;
    Ctx ctx;
    Ctx *c = &ctx;
    c->A = A;
    // Some drivers align it to its type and no further.
    c->L = (local uchar *)room;
    c->red = red;
    c->pos0 = pos0; c->n = n; c->token = token; c->out0 = out0; c->nout = nout; c->splits = splits; c->best = best; c->pages = pages;
    c->tid = get_local_id(0); c->lane = c->tid % LANES; c->team = c->tid / LANES;
    c->group = get_group_id(0); c->groups = get_num_groups(0);
    global const uint *words = (global const uint *)LINE(c, table), *where = (global const uint *)LINE(c, lines);
#if HAS_RING
    Coming coming;
    coming.raw = coming.kind = 0;
    for (uint i = 0; i < 4; i++) {
        bring_words(&coming, words, where, first + i, last, c->tid);
        if (i > 0 && i < RING && c->tid < PHASE_WORDS) P[(i - 1) * PHASE_WORDS + c->tid] = coming.word;
    }
#else
    fetch(P, words + first * PHASE_WORDS, where, c->tid);
#endif
#if SINGLE && PTX
    local uint near[NEAR];
    c->near = near;
    ROLLED for (uint i = c->tid; i < min(pos0 / PAGE + 1, (uint)NEAR); i += T) near[i] = ((global const uint *)LINE(c, pages))[i];
#endif
    if (c->tid == 0) lost = 0;
    LOCAL_BARRIER;
    Meeting meeting;
    meeting.counter = sync;
    meeting.all = 0;
    meeting.lost = &lost;
    local uint *now = P;
    for (uint i = first;;) {
        c->P = now;
        if (c->groups > 1 && i > first) meeting.all += c->groups;
        bool met;
        // Attention that is known has the lines of all pages in local memory.
        switch (now[KIND] == ATTEND && pos0 >= NEAR * PAGE ? 0 : now[FLAGS] >> KNOWN) {
#ifdef KNOWN_PHASES
            KNOWN_PHASES
#endif
            default:
                met = meet(c, &meeting);
                if (met) {
                    // What is called has its own, so that the one here stays in registers.
                    const Ctx called = *c;
                    run_phase(&called);
                }
        }
        if (!met || ++i >= last) break;
#if HAS_RING
        // The place of the phase before is that of the one after the next.
        if (c->tid < PHASE_WORDS) NEXT(NEXT(now))[c->tid] = coming.word;
        bring_words(&coming, words, where, i + 3, last, c->tid);
        now = NEXT(now);
#endif
        GROUP_BARRIER;
        if (c->groups > 1 && c->tid == 0) arrive(sync);
#if !HAS_RING
        fetch(now, words + i * PHASE_WORDS, where, c->tid);
        LOCAL_BARRIER;
#elif PTX
        if (c->groups > 1 && i + 1 < last && c->team == TEAMS - 1) fetch_ahead(c, NEXT(now));
#endif
    }
    // Whoever leaves last clears the counter for the next launch.
    if (meeting.all > 0 && c->tid == 0) {
        if (lost) sync[2] = 1;
        if (atomic_add((volatile global uint *)sync + 1, 1u) == c->groups - 1) {
            sync[0] = 0;
            sync[1] = 0;
        }
    }
}
