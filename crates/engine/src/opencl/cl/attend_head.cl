// Attention of a token of which every work-group has one head: keys and values of the past are asked for while others are waited for, two
// work-items share a position, and the token's own key and value do not go through the device's memory.

#define GROUP_OF_HEADS (K(HEADS) / K(KV_HEADS))
#define STEP ((K(KV_TILE) < 8 * T / EACH_ROW ? K(KV_TILE) : 8 * T / EACH_ROW) / 16 * 16)       // positions in local memory
#define LOADS ((STEP * EACH_ROW + T - 1) / T)
#define SIMPLE (K(NORM) == NONE && K(K_NORM) == NONE && 2 * K(PAIRS) == HEAD_DIM)
// A row of the cache; `line` is that of the layer's keys or values of a head in a page.
#define PAST(line, pos) ((global const uint4 *)c->A + (c->near[(pos) / PAGE] + (line) + (pos) % PAGE * (K(ROW_BYTES) / 16)))

// Sixteens of values: what is not there is 0.
typedef struct { uint4 of[LOADS]; } OF_PHASE(Values);
static ALWAYS void OF_PHASE(load_)(const Ctx *c, OF_PHASE(Values) *v, uint line, uint at, uint count) {
#pragma unroll
    for (uint u = 0; u < LOADS; u++) {
        const uint i = c->tid + u * T, j = i / EACH_ROW;
        v->of[u] = j < count ? PAST(line, at + j)[i % EACH_ROW] : (uint4)(0);
    }
}

static ALWAYS bool OF_PHASE(known_phase_)(const Ctx *c, const Meeting *meeting) {
    local const uint *P = c->P;
    const uint d = HEAD_DIM, pairs = K(PAIRS), pos = c->pos0;
    const bool has = c->group < K(HEADS) * c->splits;
    uint split = 0, first = has ? c->group : 0;
    if (c->splits > 1) {
        split = first % c->splits;
        first = first / c->splits;
    }
    const uint head = first / GROUP_OF_HEADS;
    const uint keys = (P[LAYER_AT] + head * PAGE * K(ROW_BYTES)) / 16, values = keys + K(HALF) / 16;
    const uint from = K(WINDOW) != 0 && pos + 1 > K(WINDOW) ? pos + 1 - K(WINDOW) : 0;
    uint start = from, end = pos + 1;
    if (c->splits > 1) {
        const uint chunk = (pos + 1 - from + c->splits - 1) / c->splits;
        start = min(from + split * chunk, pos + 1);
        end = min(start + chunk, pos + 1);
    }
    const bool whole = c->splits == 1 && pos + 1 - from <= SPAN, fresh = end == pos + 1;
    local float *q = (local float *)c->L, *scores = q + 2 * d, *k = scores + SPAN, *weights = c->red;
    local uint *most = (local uint *)(c->red + OF_TEAMS);
    local uint *own_key = (local uint *)(q + d), *own_value = own_key + d / 2;
    local uint4 *rows = (local uint4 *)c->L + K(ROWS_AT);
    // The positions of this work-item: lane / 2 of each sixteen.
    const uint mine = c->team * 16 + c->lane / 2;
    Key key;
    OF_PHASE(Values) v;
#pragma unroll
    for (uint i = 0; i < EACH_ROW / 2; i++) key.of[i] = (uint4)(0);
#pragma unroll
    for (uint i = 0; i < LOADS; i++) v.of[i] = (uint4)(0);
    global const float *rotation = FLOATS(c, P[ROPE], (K(OF_STEP) ? 0 : pos) * 2 * pairs);
#if SIMPLE
    // A pair of the query, of the key, and one value.
    const uint pair = c->tid % pairs, a = K(HALVES) ? pair : 2 * pair, b = K(HALVES) ? a + pairs : a + 1;
    const uint of_value = T >= 2 * d ? c->tid - d : c->tid;
    const float co = rotation[pair], si = rotation[pairs + pair];
#endif
    global const float *x = FLOATS(c, P[IN], 0);
    float x0 = 0, x1 = 0, new_v = 0;
    // The team that looks whether all have come has its own loads behind that.
    ROLLED for (uint turn = 0; turn < 2; turn++) {
#if SIMPLE
        if (turn == 1 && has) {
            global const float *of_pair = x + (c->tid < pairs ? K(IN_AT) + first * d : K(K_AT) + head * d);
            x0 = of_pair[a];
            x1 = of_pair[b];
            if (of_value < d) new_v = x[K(V_AT) + head * d + of_value];
        }
#endif
        if (turn == (c->team == 0) && has) {
            load_key(c, &key, PAST(keys, min(start + mine, pos)));
            OF_PHASE(load_)(c, &v, values, start, min((uint)STEP, end - start));
        }
        if (turn == 0 && !meet(c, meeting)) return false;
    }
    if (!has) return true;
#if SIMPLE
    if (c->tid < 2 * pairs) {
        const float y0 = fma(x1, -si, x0 * co), y1 = fma(x0, si, x1 * co);
        if (c->tid < pairs) {
            q[a] = y0;
            q[b] = y1;
        } else {
            vstore_half_rte(y0, a, (local half *)own_key);
            vstore_half_rte(y1, b, (local half *)own_key);
        }
    }
    if (of_value < d) vstore_half_rte(new_v, of_value, (local half *)own_value);
#else
    local float *angles = k + 2 * d;
    const uint i = min(c->tid, d - 1);
    const float new_q = x[K(IN_AT) + first * d + i], new_k = x[K(K_AT) + head * d + i];
    new_v = x[K(V_AT) + head * d + i];
    const float angle = rotation[min(c->tid, 2 * pairs - 1)];
    if (c->tid < d) { q[i] = new_q; k[i] = new_k; k[d + i] = new_v; }
    if (c->tid < 2 * pairs) angles[c->tid] = angle;
    LOCAL_BARRIER;
    norm_heads(c, q, 1, d, P[NORM]);
    norm_heads(c, k, 1, d, P[K_NORM]);
    for (uint i = c->tid; i < 2 * pairs; i += T) {
        local float *of = i < pairs ? q : k;
        const uint pair = i % pairs, a = K(HALVES) ? pair : 2 * pair, b = K(HALVES) ? a + pairs : a + 1;
        const float co = angles[pair], si = angles[pairs + pair], x0 = of[a], x1 = of[b];
        of[a] = fma(x1, -si, x0 * co);
        of[b] = fma(x0, si, x1 * co);
    }
    LOCAL_BARRIER;
    for (uint i = c->tid; i < 2 * d; i += T) vstore_half_rte(k[i], i, (local half *)own_key);
#endif
    LOCAL_BARRIER;
    // Of the query heads that share a key the first writes it.
    if (fresh && first % GROUP_OF_HEADS == 0 && c->tid < 2 * EACH_ROW)
        ((global uint4 *)PAST(c->tid < EACH_ROW ? keys : values, pos))[c->tid % EACH_ROW] = ((local uint4 *)own_key)[c->tid];
    // Greatest score so far, sum of the weights, sum of the values.
    float shift = -INFINITY, all = 0, sum = 0;
    ROLLED for (uint at = start; at < end; at += SPAN) {
        const uint count = min((uint)SPAN, end - at);
        ROLLED for (uint j = mine; j < (count + 15) / 16 * 16; j += TEAMS * 16) {
            if (at > start || j != mine) load_key(c, &key, PAST(keys, min(at + j, pos)));
            if (at + j == pos)
#pragma unroll
                for (uint i = 0; i < EACH_ROW / 2; i++) key.of[i] = ((local uint4 *)own_key)[2 * i + c->lane % 2];
            // Lane 16 of the CPU's is value i % 16: eight of them here, eight in the neighbour.
            float sums[8];
#pragma unroll
            for (uint e = 0; e < 8; e++) sums[e] = 0;
#pragma unroll
            for (uint i = 0; i < EACH_ROW / 2; i++) {
                const local float4 *y = (const local float4 *)q + 4 * i + c->lane % 2 * 2;
                const float4 low = y[0], high = y[1];
                const uint4 x = key.of[i];
                sums[0] = fma(low.x, half_of(x.x & 0xffff), sums[0]);
                sums[1] = fma(low.y, half_of(x.x >> 16), sums[1]);
                sums[2] = fma(low.z, half_of(x.y & 0xffff), sums[2]);
                sums[3] = fma(low.w, half_of(x.y >> 16), sums[3]);
                sums[4] = fma(high.x, half_of(x.z & 0xffff), sums[4]);
                sums[5] = fma(high.y, half_of(x.z >> 16), sums[5]);
                sums[6] = fma(high.z, half_of(x.w & 0xffff), sums[6]);
                sums[7] = fma(high.w, half_of(x.w >> 16), sums[7]);
            }
#pragma unroll
            for (uint e = 0; e < 8; e++) sums[e] += lane_xor(sums[e], 1);
            const float dot = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
            if (c->lane % 2 == 0 && j < count) scores[j] = dot * as_float(K(A_SCALE));
        }
        LOCAL_BARRIER;
        // Scores to weights, two a work-item. As integers the scores are in the same order.
        float x[2];
        uint greatest_here = 0;
#pragma unroll
        for (uint i = 0; i < 2; i++) {
            x[i] = c->tid + i * T < count ? scores[c->tid + i * T] : -INFINITY;
            const uint bits = as_uint(x[i]);
            greatest_here = max(greatest_here, bits >> 31 ? ~bits : bits | 0x80000000u);
        }
        greatest_here = most_of_team(greatest_here);
        if (c->lane == 0) most[c->team] = greatest_here;
        LOCAL_BARRIER;
        greatest_here = most_of_all(most);
        const float before = shift;
        shift = fmax(before, as_float(greatest_here >> 31 ? greatest_here & 0x7fffffffu : ~greatest_here));
        if (isinf(shift)) shift = 0;
#pragma unroll
        for (uint i = 0; i < 2; i++) {
            x[i] = c->tid + i * T < count ? exp_(x[i] - shift) : 0.0f;
            scores[c->tid + i * T] = x[i];
        }
        LOCAL_BARRIER;
        // Their sum in the order of the CPU's sixteen lanes, by each half of a team alike.
        float part = 0;
        ROLLED for (uint j = c->lane % 16; j < count; j += 64) {
            const float a = scores[j], b = scores[j + 16], e = scores[j + 32], f = scores[j + 48];
            part = (((part + a) + b) + e) + f;
        }
#pragma unroll
        for (uint o = 8; o > 0; o >>= 1) part += lane_xor(part, o);
        const float factor = exp_(before - shift);
        all = all * factor + part;
#pragma unroll
        for (uint i = 0; i < 2; i++) weights[c->tid + i * T] = whole ? x[i] / all : x[i];
        sum = whole ? 0.0f : sum * factor;
        ROLLED for (uint base = 0; base < count; base += STEP) {
            const uint some = min((uint)STEP, count - base), own = pos - at - base;
            if (base > 0 || at > start) OF_PHASE(load_)(c, &v, values, at + base, some);
#pragma unroll
            for (uint u = 0; u < LOADS; u++) {
                const uint i = c->tid + u * T, j = i / EACH_ROW;
                if ((LOADS * T == STEP * EACH_ROW || j < STEP) && j != own) rows[j * (EACH_ROW + 1) + i % EACH_ROW] = v.of[u];
            }
            if (own < some && c->tid < EACH_ROW) rows[own * (EACH_ROW + 1) + c->tid] = ((local uint4 *)own_value)[c->tid];
            LOCAL_BARRIER;
            if (c->tid < d) {
                local const ushort *y = (local const ushort *)rows + c->tid;
                local const float4 *w = (local const float4 *)(weights + base);
                // Behind the last position are zeros.
                ROLLED for (uint j = 0; j < some; j += 8) {
                    const float4 a = w[j / 4], b = w[j / 4 + 1];
                    float v[8];
#pragma unroll
                    for (uint e = 0; e < 8; e++) v[e] = half_of(y[(j + e) * 8 * (EACH_ROW + 1)]);
                    sum = fma(a.x, v[0], sum); sum = fma(a.y, v[1], sum); sum = fma(a.z, v[2], sum); sum = fma(a.w, v[3], sum);
                    sum = fma(b.x, v[4], sum); sum = fma(b.y, v[5], sum); sum = fma(b.z, v[6], sum); sum = fma(b.w, v[7], sum);
                }
            }
            LOCAL_BARRIER;
        }
    }
    if (c->tid >= d) return true;
    if (c->splits == 1) {
        FLOATS(c, P[A_OUT], K(A_OUT_AT))[first * d + c->tid] = whole ? sum : sum / all;
    } else {
        global float *out = FLOATS(c, P[PARTIAL], (first * K(MAX_SPLITS) + split) * (d + 2));
        out[2 + c->tid] = sum;
        if (c->tid == 0) { out[0] = shift; out[1] = all; }
    }
    return true;
}

#undef GROUP_OF_HEADS
#undef STEP
#undef LOADS
#undef SIMPLE
#undef PAST
