// Phases of one token whose words the compiler knows: on NVIDIA's GPUs most of a ternary model's time goes to them. `words.cl`,
// `attend_head.cl` and `logits.cl` are compiled once for each: loops have known ends, nothing is decided that could be known, and few
// instructions have to be fetched, which is what a phase that short waits for. What does not depend on the phase before is on its way to
// registers while work-groups meet.
//
// The words are defined as K_0 to K_63; those that depend on where things lie are 0, or NONE where there is nothing, and are read from P.
//   NTH     number of the phase among those that are known
//   GROUPS  work-groups

#define K(word) CAT(K_, word)
// The same of products.
#define K_FMT K_16
#define K_ROWS_0 K_18
#define K_ROWS_1 K_34
#define K_BIAS_0 K_26
#define K_BIAS_1 K_42
#define K_BIAS_2 K_58
#define K_ADD_0 K_28
#define K_ADD_1 K_44
#define K_ADD_2 K_60
// Where in `red` each team puts what it has: behind a norm's thousand lanes and the 128 that they are folded to.
#define OF_TEAMS (SUM_LANES + 128)
#define OF_PHASE(name) CAT(name, NTH)

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
// What `n` values are multiplied with so that their squares are one on average; a work-item has `fours` fours of them, T fours apart.
// The sum is the CPU's: lane i % 1024 takes value i, then lanes are folded by halves.
static ALWAYS float norm_factor(const Ctx *c, const float4 *v, uint fours, uint n, float eps) {
    float4 s = (float4)(0.0f);
#pragma unroll
    for (uint k = 0; k < fours; k++) s = fma(v[k], v[k], s);
    local float4 *all = (local float4 *)c->red;
    all[c->tid] = s;
    LOCAL_BARRIER;
    local float *lanes = c->red;
    if (c->team < 4) {
        local const float *of = lanes + c->tid;
        const float sum = ((of[0] + of[512]) + (of[256] + of[768])) + ((of[128] + of[640]) + (of[384] + of[896]));
        lanes[SUM_LANES + c->tid] = sum;
    }
    LOCAL_BARRIER;
    lanes += SUM_LANES + c->lane;
    float sum = (lanes[0] + lanes[64]) + (lanes[32] + lanes[96]);
#pragma unroll
    for (uint o = 16; o > 0; o >>= 1) sum += lane_xor(sum, o);
    // Divided by a number whose reciprocal is known, rounded as a division is.
    const float count = (float)n, reciprocal = 1.0f / count;
    float mean = sum * reciprocal;
    mean = fma(fma(-mean, count, sum), reciprocal, mean);
    mean = fma(fma(-mean, count, sum), reciprocal, mean);
    return 1.0f / sqrt(mean + eps);
}

// What all teams have, each a value, in `room`.
static ALWAYS uint most_of_all(local const uint *room) {
    const uint4 a = ((local const uint4 *)room)[0], b = ((local const uint4 *)room)[1];
    return max(max(max(a.x, a.y), max(a.z, a.w)), max(max(b.x, b.y), max(b.z, b.w)));
}
static ALWAYS int sum_of_all(local const int *room) {
    const int4 a = ((local const int4 *)room)[0] + ((local const int4 *)room)[1];
    return (a.x + a.y) + (a.z + a.w);
}

// Four values to signed bytes: multiplied, and rounded to even by the addition, whose lowest byte is the result.
static ALWAYS uint to_bytes(float4 v, float inverse) {
    const uint4 b = as_uint4(v * inverse + 12582912.0f);
    uint low, high, all;
    asm("prmt.b32 %0, %1, %2, 0x0040;" : "=r"(low) : "r"(b.x), "r"(b.y));
    asm("prmt.b32 %0, %1, %2, 0x0040;" : "=r"(high) : "r"(b.z), "r"(b.w));
    asm("prmt.b32 %0, %1, %2, 0x5410;" : "=r"(all) : "r"(low), "r"(high));
    return all;
}

// Attention: keys and values on their way.
#if KV_KIND == 1 && HEAD_DIM % 32 == 0 && HEAD_DIM <= 256
#define EACH_ROW (HEAD_DIM / 8)      // sixteens of bytes in a row
typedef struct { uint4 of[EACH_ROW / 2]; } Key;

// Half of the sixteens of a row: every second from lane % 2 on.
static ALWAYS void load_key(const Ctx *c, Key *key, global const uint4 *row) {
#pragma unroll
    for (uint i = 0; i < EACH_ROW / 2; i++) key->of[i] = row[2 * i + c->lane % 2];
}
#endif
