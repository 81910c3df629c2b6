// A row of a matrix: where its planes begin. A format's block is stored in fields, each field of all blocks of all rows in
// a plane of its own (pack.rs), so that every load here is aligned and neighbouring lanes read neighbouring bytes.
typedef struct { global const uchar *p0, *p1, *p2, *p3; } Row;

// Bytes of a row in a plane.
#define STRIDE(blocks, len) (((blocks) * (len) + 15) & ~15u)

static inline Row row_of(const Ctx *c, local const uint *p, uint row, uint s0, uint s1, uint s2, uint s3) {
    global const uchar *base = LINE(c, p[MAT]);
    Row r;
    r.p0 = base + (ulong)row * s0;
    r.p1 = base + ((ulong)p[PL1] << 4) + (ulong)row * s1;
    r.p2 = base + ((ulong)p[PL2] << 4) + (ulong)row * s2;
    r.p3 = base + ((ulong)p[PL3] << 4) + (ulong)row * s3;
    return r;
}

// The scale of a row that has one, and its bias.
static inline float row_scale(const Ctx *c, local const uint *of, uint row) {
    uint plane = of[FMT] == 3 ? of[PL2] : of[PL1];
    return ((global const float *)(LINE(c, of[MAT]) + ((ulong)plane << 4)))[row];
}
static inline float row_bias(const Ctx *c, local const uint *of, uint row) { return FLOATS(c, of[BIAS], of[BIAS_AT])[row]; }

#if !HAS_SHUFFLES
// What the lanes of a team have put into c->red for row r, added up in order; as integers where they are.
static inline float team_total(const Ctx *c, uint r, bool whole) {
    local const float *v = c->red + r * T + c->team * LANES;
    float sum = 0;
    int isum = 0;
    for (uint i = 0; i < LANES; i++) {
        if (whole) isum += as_int(v[i]);
        else sum += v[i];
    }
    return whole ? as_float(isum) : sum;
}
#endif
