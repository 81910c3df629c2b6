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
        ((AS uint4 *)rec)[k] = (uint4)(q[0], q[1], q[2], q[3]);
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
#undef QNAME1
#undef QNAME2
