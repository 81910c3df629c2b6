// Rotation, the cache, and attention over it.
//
// Words of the phases ROPE_KV and ATTEND:
#define HEADS 9
#define KV_HEADS 10
#define TILE 11        // query heads that share a walk over the cache
#define LAYER_AT 12    // byte of the layer's keys in a page
#define HALF 13        // bytes from keys to values
#define ROW_BYTES 14
#define KV_TYPE 15     // 0: f32, 1: f16, 2: q8_0
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
// IN, IN_AT, IN_STRIDE: queries; NORM: the queries' norm; COLS: values of a head.
#define PAGE 32
#define SPAN 512       // positions walked over at a time; as many as that have the CPU's bits

static inline void rotate(const Ctx *c, local float *x, uint heads, uint d, uint pos) {
    local const uint *P = c->P;
    const uint pairs = P[PAIRS];
    global const float *angles = FLOATS(c, P[ROPE], (ulong)(P[OF_STEP] ? pos - c->pos0 : pos) * 2 * pairs);
    for (uint i = c->tid; i < heads * pairs; i += T) {
        uint h = i / pairs, k = i % pairs;
        uint a = h * d + (P[HALVES] ? k : 2 * k), b = P[HALVES] ? a + pairs : a + 1;
        float co = angles[k], si = angles[pairs + k];
        float x0 = x[a], x1 = x[b];
        x[a] = fma(x1, -si, x0 * co);
        x[b] = fma(x0, si, x1 * co);
    }
    LOCAL_BARRIER;
}

// Each head of x by its root mean square; at most 16 heads.
static inline void norm_heads(const Ctx *c, local float *x, uint heads, uint d, uint weight) {
    if (weight == NONE) return;
    global const float *w = FLOATS(c, weight, 0);
    for (uint h = c->tid; h < heads; h += T) {
        float lanes[16];
        for (uint j = 0; j < 16; j++) lanes[j] = 0;
        for (uint i = 0; i < d; i += 16) {
#pragma unroll
            for (uint j = 0; j < 16; j++) if (i + j < d) lanes[j] = fma(x[h * d + i + j], x[h * d + i + j], lanes[j]);
        }
#define V(i) lanes[i]
        c->red[h] = 1.0f / sqrt(FOLD16(V) / (float)d + as_float(c->P[EPS]));
    }
    LOCAL_BARRIER;
    for (uint i = c->tid; i < heads * d; i += T) x[i] = x[i] * c->red[i / d] * w[i % d];
    LOCAL_BARRIER;
}

static inline global uchar *kv_page(const Ctx *c, uint pos) {
    uint line = ((global const uint *)LINE(c, c->pages))[pos / PAGE];
    return LINE(c, line);
}
static inline global uchar *kv_row(const Ctx *c, uint head, uint pos, bool value) {
    local const uint *P = c->P;
    return kv_page(c, pos) + P[LAYER_AT] + (value ? P[HALF] : 0) + (head * PAGE + pos % PAGE) * P[ROW_BYTES];
}
static inline float kv_value(const Ctx *c, global const uchar *row, uint i) {
    uint type = c->P[KV_TYPE];
    if (type == 1) return half_at(row + 2 * i);
    if (type == 0) return ((global const float *)row)[i];
    global const uchar *block = row + i / 32 * 34;
    return (float)(char)block[2 + i % 32] * half_at(block);
}

// One head's d values to its row: crates/kernels/src/ops/kv.rs.
static inline void kv_store(const Ctx *c, local const float *x, uint d, global uchar *row) {
    uint type = c->P[KV_TYPE];
    if (type == 0) {
        for (uint i = c->tid; i < d; i += T) ((global float *)row)[i] = x[i];
    } else if (type == 1) {
        for (uint i = c->tid; i < d; i += T) vstore_half_rte(x[i], i, (global half *)row);
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

// This token's key and value of one head into the cache; `k` is room for a head. Writers of the same row write the same.
static inline void append(const Ctx *c, local float *k, uint t, uint head) {
    local const uint *P = c->P;
    const uint d = P[COLS], pos = c->pos0 + t;
    global const float *from = FLOATS(c, P[IN], (ulong)t * P[IN_STRIDE] + head * d);
    for (uint i = c->tid; i < d; i += T) k[i] = from[P[K_AT] + i];
    LOCAL_BARRIER;
    norm_heads(c, k, 1, d, P[K_NORM]);
    rotate(c, k, 1, d, pos);
    kv_store(c, k, d, kv_row(c, head, pos, false));
    LOCAL_BARRIER;
    for (uint i = c->tid; i < d; i += T) k[i] = from[P[V_AT] + i];
    LOCAL_BARRIER;
    kv_store(c, k, d, kv_row(c, head, pos, true));
    GROUP_BARRIER;
}

// Prompts: keys and values of all tokens, before anyone attends to them.
static void rope_kv(const Ctx *c) {
    const uint heads = c->P[KV_HEADS];
    for (uint item = c->group; item < c->n * heads; item += c->groups) append(c, (local float *)c->L, item / heads, item % heads);
}

static inline float dot_row(const Ctx *c, local const float *q, global const uchar *row, uint d) {
    float lanes[16];
    for (uint j = 0; j < 16; j++) lanes[j] = 0;
    if (c->P[KV_TYPE] == 1 && d % 16 == 0) {
        for (uint i = 0; i < d; i += 16) {
            uint4 x[2];
            x[0] = *(global const uint4 *)(row + 2 * i);
            x[1] = *(global const uint4 *)(row + 2 * i + 16);
#pragma unroll
            for (uint j = 0; j < 2; j++) {
                uint words[4];
                words[0] = x[j].x; words[1] = x[j].y; words[2] = x[j].z; words[3] = x[j].w;
#pragma unroll
                for (uint k = 0; k < 8; k++) {
                    float v = half_of(words[k / 2] >> (k % 2 * 16) & 0xffff);
                    lanes[j * 8 + k] = fma(q[i + j * 8 + k], v, lanes[j * 8 + k]);
                }
            }
        }
    } else {
        for (uint i = 0; i < d; i += 16) {
#pragma unroll
            for (uint j = 0; j < 16; j++) if (i + j < d) lanes[j] = fma(q[i + j], kv_value(c, row, i + j), lanes[j]);
        }
    }
    return FOLD16(V);
}

static void attend(const Ctx *c) {
    local const uint *P = c->P;
    const uint d = P[COLS], kv_heads = P[KV_HEADS], group = P[HEADS] / kv_heads, tile = P[TILE];
    const uint tiles = (group + tile - 1) / tile, each = kv_heads * tiles * c->splits;
    local float *q = (local float *)c->L, *acc = q + tile * d, *scores = acc + tile * d, *m = scores + tile * SPAN;
    local float *l = m + tile, *correct = l + tile, *lanes = correct + tile, *k = lanes + 16 * tile;
    for (uint item = c->group; item < c->n * each; item += c->groups) {
        const uint t = item / each, split = item % c->splits, g = item / c->splits % tiles, head = item / c->splits / tiles % kv_heads;
        const uint pos = c->pos0 + t, from = P[WINDOW] != 0 && pos + 1 > P[WINDOW] ? pos + 1 - P[WINDOW] : 0;
        const uint chunk = (pos + 1 - from + c->splits - 1) / c->splits;
        const uint start = min(from + split * chunk, pos + 1), end = min(start + chunk, pos + 1);
        // All positions at once: then probabilities are divided before they are summed up, as on the CPU.
        const bool whole = c->splits == 1 && pos + 1 - from <= SPAN;
        const uint first = head * group + g * tile, n = min(tile, group - g * tile);
        global const float *x = FLOATS(c, P[IN], (ulong)t * P[IN_STRIDE] + P[IN_AT] + first * d);
        for (uint i = c->tid; i < n * d; i += T) { q[i] = x[i]; acc[i] = 0; }
        for (uint i = c->tid; i < n; i += T) { m[i] = -INFINITY; l[i] = 0; }
        LOCAL_BARRIER;
        norm_heads(c, q, n, d, P[NORM]);
        rotate(c, q, n, d, pos);
        if (P[FRESH] && end == pos + 1) append(c, k, t, head);
        for (uint at = start; at < end; at += SPAN) {
            const uint count = min((uint)SPAN, end - at);
            for (uint i = c->tid; i < n * count; i += T) {
                uint h = i % n, j = i / n;
                scores[h * SPAN + j] = dot_row(c, q + h * d, kv_row(c, head, at + j, false), d) * as_float(P[A_SCALE]);
            }
            LOCAL_BARRIER;
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
            for (uint i = c->tid; i < n * d; i += T) {
                uint h = i / d, e = i % d;
                float a = whole ? 0.0f : acc[i] * correct[h];
                for (uint j = 0; j < count; j++) a = fma(scores[h * SPAN + j], kv_value(c, kv_row(c, head, at + j, true), e), a);
                acc[i] = a;
            }
            LOCAL_BARRIER;
        }
        if (c->splits == 1) {
            global float *out = FLOATS(c, P[A_OUT], (ulong)t * P[A_OUT_STRIDE] + P[A_OUT_AT] + first * d);
            for (uint i = c->tid; i < n * d; i += T) out[i] = whole ? acc[i] : acc[i] / l[i / d];
        } else {
            for (uint i = c->tid; i < n * d; i += T) {
                uint h = i / d, e = i % d;
                global float *out = FLOATS(c, P[PARTIAL], ((first + h) * P[MAX_SPLITS] + split) * (d + 2));
                out[2 + e] = acc[i];
                if (e == 0) { out[0] = m[h]; out[1] = l[h]; }
            }
        }
        LOCAL_BARRIER;
    }
}

// Joins what the splits of one token have.
static void combine(const Ctx *c) {
    local const uint *P = c->P;
    const uint d = P[COLS];
    global float *out = FLOATS(c, P[A_OUT], P[A_OUT_AT]);
    for (uint i = c->group * T + c->tid; i < P[HEADS] * d; i += c->groups * T) {
        uint h = i / d, e = i % d;
        global const float *part = FLOATS(c, P[PARTIAL], h * P[MAX_SPLITS] * (d + 2));
        float max = -INFINITY, sum = 0, l = 0;
        for (uint s = 0; s < c->splits; s++) if (part[s * (d + 2) + 1] > 0) max = fmax(max, part[s * (d + 2)]);
        for (uint s = 0; s < c->splits; s++) {
            global const float *p = part + s * (d + 2);
            if (!(p[1] > 0) && !isnan(p[1])) continue;
            float f = exp_(p[0] - max);
            sum = fma(p[2 + e], f, sum);
            l = fma(p[1], f, l);
        }
        out[i] = sum / l;
    }
}
