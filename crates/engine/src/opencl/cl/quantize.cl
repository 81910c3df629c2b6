// One input vector, normalized if asked for, to one record of signed bytes, with the arithmetic of
// crates/kernels/src/ops/quantize.rs: the values in order, padded with zeros to 256; a short sum of every 16; a scale of every
// group; a sum of every group. AS says where the record lies.
//
// A work-item takes 16 values at a time: they share a sum, and every group of values with one scale is whole chunks.
//
// Where local memory has room the input is brought there first, all work-items reading side by side: the norm's sum, which
// keeps the CPU's order, is a chain of loads, and global ones would make it long.

#define QNAME2(as) quantize_##as
#define QNAME1(as) QNAME2(as)
#define QNAME4(as) quantize_four_##as
#define QNAME3(as) QNAME4(as)

#if PTX
// The same by whole warps. A work-item takes four neighbouring values at a time, so that loads and stores of a warp lie side
// by side; what sixteen or 32 values share is found among the lanes. Padded rows are whole warps of fours. Values stay in
// registers, FOURS times four of them, so that all of memory's answers are waited for together; longer rows take turns.
#define FOURS 4

// What is no number makes its group's maximum infinite.
#ifndef GREATEST
#define GREATEST
static inline float greatest(float4 v) {
    float bad = fma(v.w, 0.0f, fma(v.z, 0.0f, fma(v.y, 0.0f, v.x * 0.0f)));
    return isnan(bad) ? INFINITY : fmax(fmax(fabs(v.x), fabs(v.y)), fmax(fabs(v.z), fabs(v.w)));
}
static inline float4 four(global const float *x, uint i, bool aligned) {
    return aligned ? ((global const float4 *)x)[i] : vload4(i, x);
}
static inline void greatest_of_warp(const Ctx *c, local float *room, uint i, float4 v) {
    float m = greatest(v);
    for (uint o = 16; o > 0; o >>= 1) m = fmax(m, lane_xor(m, o));
    if (c->lane == 0) room[i / 32] = m;
}
#endif

// Four values to signed bytes, with what they share with their neighbours; returns their sum.
static inline int QNAME3(AS)(AS uchar *rec, AS short *sums16, AS float *scales, AS int *sums, uint i, uint each, uint grain,
                             float m, float4 v, uint place) {
    if (grain == 0) {
        m = greatest(v);
        for (uint o = 4; o > 0; o >>= 1) m = fmax(m, lane_xor(m, o));
    }
    const float inverse = 127.0f / m;
    const bool bad = isinf(m), zero = bad || isinf(inverse);
    const int4 q = zero ? (int4)(0) : convert_int4(rint(v * inverse));
    ((AS uint *)rec)[place * 4 + i % 4] = (uint)(q.x & 255) | (uint)(q.y & 255) << 8 | (uint)(q.z & 255) << 16 | (uint)q.w << 24;
    const int own = q.x + q.y + q.z + q.w;
    int sum = own + lane_xor_int(own, 1);
    sum += lane_xor_int(sum, 2);
    if (i % 4 == 0) sums16[i / 4] = (short)sum;
    if (i % each == 0) scales[i / each] = bad ? NAN : zero ? 0.0f : m / 127.0f;
    if (grain == 0) {
        sum += lane_xor_int(sum, 4);
        if (i % 8 == 0) sums[i / 8] = sum;
    }
    return own;
}

static void QNAME1(AS)(const Ctx *c, global const float *x, AS uchar *rec, local float *room) {
    const uint cols = c->P[COLS], grain = GRAIN_OF(c->P), padded = max((cols + 255) / 256, 1u) * 256, real = cols / 4;
    const uint fours = padded / 4, groups = grain == 0 ? padded / 32 : grain == 1 ? padded / 256 : 1, each = fours / groups;
    AS short *sums16 = (AS short *)(rec + padded);
    AS float *scales = (AS float *)(rec + padded + padded / 8);
    AS int *sums = (AS int *)(scales + groups);
    const bool normed = c->P[NORM] != NONE, staged = c->P[FLAGS] & 8, aligned = ((ulong)x & 15) == 0;
    const bool once = fours <= FOURS * T;
    global const float4 *w = (global const float4 *)(normed ? FLOATS(c, c->P[NORM], 0) : x);
    local float4 *here = (local float4 *)(room + padded / 16);
    // Without a value from the beginning they would be kept from one call to the next.
    float4 v[FOURS], weights[FOURS];
    _Pragma("unroll") for (uint k = 0; k < FOURS; k++) v[k] = weights[k] = (float4)(0.0f);
    // Values from i on, T * 4 apart: all of them are asked for before the first is used.
#define EACH(i) _Pragma("unroll") for (uint k = 0, i = from + c->tid; k < FOURS; k++, i += T)
#define BRING EACH(i) v[k] = i < real ? four(x, i, aligned) : (float4)(0.0f);
#define BRING_WEIGHTS EACH(i) if (normed && i < real) weights[k] = w[i];
    float factor = 1.0f;
    if (normed && staged) {
        for (uint from = 0; from < real; from += FOURS * T) {
            BRING
            if (once) { BRING_WEIGHTS }
            EACH(i) if (i < real) here[i] = v[k];
        }
        LOCAL_BARRIER;
        factor = rms_factor_local(c, (local float *)here, cols, as_float(c->P[EPS]));
    } else {
        const uint from = 0;
        BRING
        if (once) { BRING_WEIGHTS }
        if (normed) factor = rms_factor(c, x, cols, as_float(c->P[EPS]));
    }
    // Values again, where there are more than the registers hold.
#define AGAIN                                                                                   \
    if (!once) {                                                                                \
        BRING_WEIGHTS                                                                           \
        if (normed && staged) { EACH(i) v[k] = i < real ? here[i] : (float4)(0.0f); }           \
        else { BRING }                                                                          \
    }                                                                                           \
    if (normed && (from == 0 || !once)) { EACH(i) if (i < real) v[k] = v[k] * factor * weights[k]; }
    float most = 0;
    if (grain != 0) {
        for (uint from = 0; from < fours; from += FOURS * T) {
            AGAIN
            EACH(i) {
                most = fmax(most, greatest(v[k]));
                // A maximum of 256 values belongs to two warps.
                if (grain == 1 && i < fours) greatest_of_warp(c, room, i, v[k]);
            }
        }
        if (grain == 2) most = group_max(c, most);
        else LOCAL_BARRIER;
    }
    int total = 0;
    for (uint from = 0; from < fours; from += FOURS * T) {
        if (!once || grain == 0) { AGAIN }
        EACH(i) {
            if (i >= fours) continue;
            const float m = grain == 1 ? fmax(room[i / 64 * 2], room[i / 64 * 2 + 1]) : most;
            total += QNAME3(AS)(rec, sums16, scales, sums, i, each, grain, m, v[k], SIXTEENTH(c->P, padded, i / 4));
        }
    }
    if (grain == 2) {
        total = group_add_int(c, total);
        if (c->tid == 0) sums[0] = total;
    }
    GROUP_BARRIER;
    if (grain == 1) {
        for (uint g = c->tid; g < groups; g += T) {
            int sum = 0;
            for (uint j = 0; j < 16; j++) sum += sums16[g * 16 + j];
            sums[g] = sum;
        }
        GROUP_BARRIER;
    }
}
#undef EACH
#undef BRING
#undef BRING_WEIGHTS
#undef AGAIN
#else
static void QNAME1(AS)(const Ctx *c, global const float *x, AS uchar *rec, local float *cmax) {
    const uint cols = c->P[COLS], grain = c->P[GRAIN];
    const uint padded = max((cols + 255) / 256, 1u) * 256, chunks = padded / 16;
    const uint groups = grain == 0 ? padded / 32 : grain == 1 ? padded / 256 : 1;
    const uint each = chunks / groups;
    AS short *sums16 = (AS short *)(rec + padded);
    AS float *scales = (AS float *)(rec + padded + padded / 8);
    AS int *sums = (AS int *)(scales + groups);
    const bool normed = c->P[NORM] != NONE;
    global const float *w = normed ? FLOATS(c, c->P[NORM], 0) : x;
    const bool staged = c->P[FLAGS] & 8;
    local float *here = cmax + chunks;
    if (staged) {
        for (uint i = c->tid; i < cols; i += T) here[i] = x[i];
        LOCAL_BARRIER;
    }
    float factor = 1.0f;
    if (normed && staged) factor = rms_factor_local(c, here, cols, as_float(c->P[EPS]));
    else if (normed) factor = rms_factor(c, x, cols, as_float(c->P[EPS]));
    if (normed && staged) {
        for (uint i = c->tid; i < cols; i += T) here[i] = here[i] * factor * w[i];
        LOCAL_BARRIER;
    }
#define VALUE(i) (staged ? here[i] : normed ? x[i] * factor * w[i] : x[i])

    float most = 0, nan = 0;
    for (uint k = c->tid; k < chunks; k += T) {
        float m = 0, bad = 0;
        for (uint i = k * 16; i < min(k * 16 + 16, cols); i++) {
            float v = VALUE(i);
            m = fmax(m, fabs(v));
            bad = fma(v, 0.0f, bad);
        }
        cmax[k] = isnan(bad) ? NAN : m;
        most = fmax(most, m);
        nan = isnan(bad) ? 1.0f : nan;
    }
    if (grain == 2) {
        most = group_max(c, most);
        if (group_max(c, nan) > 0) most = NAN;
    }
    LOCAL_BARRIER;
    int total = 0;
    for (uint k = c->tid; k < chunks; k += T) {
        float m = most;
        if (grain != 2) {
            m = 0;
            bool bad = false;
            for (uint j = k / each * each; j < k / each * each + each; j++) {
                bad = bad || isnan(cmax[j]);
                m = fmax(m, cmax[j]);
            }
            if (bad) m = NAN;
        }
        float inverse = 127.0f / m;
        bool zero = isnan(m) || isinf(inverse);
        if (k % each == 0) scales[k / each] = isnan(m) ? NAN : zero ? 0.0f : m / 127.0f;
        uint q[4];
        int sum = 0;
        for (uint j = 0; j < 4; j++) {
            q[j] = 0;
            for (uint e = 0; e < 4; e++) {
                uint i = k * 16 + j * 4 + e;
                int code = 0;
                if (i < cols && !zero) {
                    float v = VALUE(i);
                    code = (int)rint(v * inverse);
                }
                sum += code;
                q[j] |= (uint)(code & 0xff) << (8 * e);
            }
        }
        ((AS uint4 *)rec)[SIXTEENTH(c->P, padded, k)] = (uint4)(q[0], q[1], q[2], q[3]);
        sums16[k] = (short)sum;
        total += sum;
    }
    if (grain == 2) {
        total = group_add_int(c, total);
        if (c->tid == 0) sums[0] = total;
    } else {
        GROUP_BARRIER;
        for (uint g = c->tid; g < groups; g += T) {
            int sum = 0;
            for (uint j = 0; j < each; j++) sum += sums16[g * each + j];
            sums[g] = sum;
        }
    }
    GROUP_BARRIER;
}

#undef VALUE
#endif
#undef QNAME1
#undef QNAME2
#undef QNAME3
#undef QNAME4
