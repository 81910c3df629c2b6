// What every part of the program uses: the phase table's words, dot products of bytes, sums over lanes.
//
// The program is compiled with these numbers defined:
//   T       work-items in a work-group
//   LANES   work-items of a team, which shares the items of a few rows; T is a multiple
//   ROWS    rows of a team's unit of work, even
//   PTX     1 where the compiler takes NVIDIA's inline PTX
//   SM      NVIDIA's compute capability times ten, 0 where it is not known
//   DOT     1 where the integer dot product extension is there
//   SUB     1 where a team is a sub-group; then SHUFFLES and WITH_TEAM are defined, too
//
// Everything lies in one allocation, the arena A. Places in it are counted in lines of 16 bytes.

//   SINGLE  1 for steps of one token, 0 for longer ones: what only the other kind needs is left out
//   GRAINS  bit g is set if there are inputs of grain g
//   KV_KIND, HEAD_DIM  type of the cache's values (0: f32, 1: f16, 2: q8_0), values of a head

#pragma OPENCL FP_CONTRACT OFF

// What keeps arrays in registers only if it has no calls.
#define ALWAYS inline __attribute__((always_inline))
// Before loops that compilers would repeat many times for little: the instructions of a phase have to be fetched, too.
#define ROLLED _Pragma("unroll 1")

#define TEAMS (T / LANES)
#define RED (ROWS * T < 1024 ? 1024 : ROWS * T)
#define NONE 0xffffffffu
// Compilers say what they have of the extension in the OpenCL C that they were asked for.
#if DOT && !defined(__opencl_c_integer_dot_product_input_4x8bit_packed)
#undef DOT
#define DOT 0
#endif
// Values go from lane to lane without local memory.
#define HAS_SHUFFLES (PTX || (SUB && SHUFFLES))

// Words of a phase. Kinds that have no products use words from 9 on as they say.
#define KIND 0
#define FLAGS 1       // 1: only the tokens whose logits are wanted; 2: gate and up in one unit; 8: local memory has room for the input;
                      // 16: quantized inputs are in the order of a ternary row's planes
#define KNOWN 16      // the bits from here on: which of the phases that the compiler knows (known.cl), 0 for none
#define COLS 2        // values of the input
#define GRAIN 3       // 0: 32 values share a scale, 1: 256, 2: all, 3: no quantization
#define IN 4          // line, first value, values from token to token
#define IN_AT 5
#define IN_STRIDE 6
#define NORM 7        // line of the norm's weights, or NONE
#define EPS 8
#define NPROD 9
#define UNITS 10
#define REC 11        // line of the quantized input, bytes from token to token
#define REC_STRIDE 12
#define ACTIVATION 13
#define SOFTCAP 14    // of logits, 0 for none
#define BUSY 11       // of the phases that are known: so many work-groups, the first ones, have no part in it, being late from the one before
#define EACH_GROUP 15 // of the phases that are known: rows or pairs of a work-group; the first have one more of what is left over
#define PROD 16       // products, PROD_WORDS each
#define PROD_WORDS 16
#define FMT 0
#define MAT 1         // index in the address table; the line itself once the phase is in local memory
#define ROWS_OF 2
#define PL1 3         // lines from the first plane to the others
#define PL2 4
#define PL3 5
#define OUT 6
#define OUT_AT 7
#define OUT_STRIDE 8
#define SCALE 9
#define BIAS 10
#define BIAS_AT 11
#define ADD 12
#define ADD_AT 13
#define ADD_STRIDE 14
#define TENSOR 15
#define PHASE_WORDS 64

typedef struct {
    global uchar *A;
    local uint *P;        // the phase
    local uchar *L;       // room, as much as the largest phase needs
    local float *red;     // RED floats for sums
    uint pos0, n, token, out0, nout, splits, best, pages;
    uint tid, lane, team, group, groups;
#if SINGLE && PTX
    local const uint *near;  // lines of the cache's first pages
#endif
} Ctx;

// Known to the compiler if all inputs have the same.
#define GRAIN_OF(P) (GRAINS == 1 ? 0 : GRAINS == 2 ? 1 : GRAINS == 4 ? 2 : (P)[GRAIN])

// Bytes from one plane's values to the next in a quantized input; 32 in the natural order.
#define TURN(P, padded) ((P)[FLAGS] & 16 ? (padded) / 4 : 32)

// Where the k-th 16 values go, in sixteens.
#define SIXTEENTH(P, padded, k) ((P)[FLAGS] & 16 ? (k) % 8 / 2 * ((padded) / 64) + (k) / 8 * 2 + (k) % 2 : (k))

#define LINE(c, line) ((c)->A + ((ulong)(line) << 4))
#define FLOATS(c, line, at) ((global float *)LINE(c, line) + (at))

// a and b hold four signed bytes each.
static inline int dot4(uint a, uint b, int acc) {
#if PTX
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(acc));
    return d;
#elif DOT
    return acc + dot_4x8packed_ss_int(a, b);
#else
    char4 x = as_char4(a), y = as_char4(b);
    return acc + x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
#endif
}

static inline int dot16(uint4 a, uint4 b, int acc) {
    return dot4(a.w, b.w, dot4(a.z, b.z, dot4(a.y, b.y, dot4(a.x, b.x, acc))));
}

// The half at p, which is even.
static inline float half_at(global const uchar *p) {
#if PTX
    float y;
    ushort u = *(global const ushort *)p;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(u));
    return y;
#else
    return vload_half(0, (global const half *)p);
#endif
}

static inline float half_of(uint bits) {
#if PTX
    float y;
    ushort u = (ushort)bits;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(u));
    return y;
#else
    ushort u = (ushort)bits;
    return vload_half(0, (private const half *)&u);
#endif
}

// A work-group of one waits for nobody; drivers for CPUs compile barriers badly and are given such groups.
#if T == 1
#define LOCAL_BARRIER
#define GROUP_BARRIER
#else
#define LOCAL_BARRIER barrier(CLK_LOCAL_MEM_FENCE)
#define GROUP_BARRIER barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE)
#endif

#if PTX
static inline float lane_xor(float x, uint o) {
    float y;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(y) : "f"(x), "r"(o));
    return y;
}
#define TEAM_BARRIER asm volatile("bar.warp.sync 0xffffffff;" : : : "memory")
static inline int lane_xor_int(int x, uint o) {
    return as_int(lane_xor(as_float(x), o));
}
static inline float lane_from(float x, uint lane) {
    float y;
    asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=f"(y) : "f"(x), "r"(lane));
    return y;
}
#elif HAS_SHUFFLES
static inline float lane_xor(float x, uint o) { return sub_group_shuffle_xor(x, o); }
static inline int lane_xor_int(int x, uint o) { return sub_group_shuffle_xor(x, o); }
#elif SUB
// Only the lanes of a team wait for each other.
#define LANES_BARRIER sub_group_barrier(CLK_LOCAL_MEM_FENCE)
#else
#define LANES_BARRIER LOCAL_BARRIER
#endif

// Over the lanes of a team, to all of them. Every work-item of the group must be here.
static inline float team_add(const Ctx *c, float x) {
    for (uint o = LANES / 2; o > 0; o >>= 1) {
#if HAS_SHUFFLES
        x += lane_xor(x, o);
#else
        c->red[c->tid] = x;
        LANES_BARRIER;
        x += c->red[c->tid ^ o];
        LANES_BARRIER;
#endif
    }
    return x;
}

static inline float team_max(const Ctx *c, float x) {
    for (uint o = LANES / 2; o > 0; o >>= 1) {
#if HAS_SHUFFLES
        x = fmax(x, lane_xor(x, o));
#else
        c->red[c->tid] = x;
        LANES_BARRIER;
        x = fmax(x, c->red[c->tid ^ o]);
        LANES_BARRIER;
#endif
    }
    return x;
}

// Where teams go through the same memory as the group, they have to have done.
#if SUB && !HAS_SHUFFLES
#define TEAMS_BARRIER LOCAL_BARRIER
#else
#define TEAMS_BARRIER
#endif

// Over the work-group, to all of it.
static inline float group_add(const Ctx *c, float x) {
    x = team_add(c, x);
    TEAMS_BARRIER;
    if (c->lane == 0) c->red[c->team] = x;
    LOCAL_BARRIER;
    float sum = 0;
    for (uint i = 0; i < TEAMS; i++) sum += c->red[i];
    LOCAL_BARRIER;
    return sum;
}

static inline float group_max(const Ctx *c, float x) {
    x = team_max(c, x);
    TEAMS_BARRIER;
    if (c->lane == 0) c->red[c->team] = x;
    LOCAL_BARRIER;
    float max = c->red[0];
    for (uint i = 1; i < TEAMS; i++) max = fmax(max, c->red[i]);
    LOCAL_BARRIER;
    return max;
}

static inline int group_add_int(const Ctx *c, int x) {
#if HAS_SHUFFLES
    for (uint o = LANES / 2; o > 0; o >>= 1) x += lane_xor_int(x, o);
    if (c->lane == 0) c->red[c->team] = as_float(x);
    LOCAL_BARRIER;
    int sum = 0;
    for (uint i = 0; i < TEAMS; i++) sum += as_int(c->red[i]);
    LOCAL_BARRIER;
    return sum;
#else
    // Two halves, so that each is exact in a float: |x| of a work-item is below 2^24 by the length of a row.
    float high = group_add(c, (float)(x >> 12));
    float low = group_add(c, (float)(x & 0xfff));
    return ((int)high << 12) + (int)low;
#endif
}

// The orders of sums that the CPU keeps: here, lane i % 16 takes value i, then the lanes are folded. Keeping them makes every
// result the CPU's to the last bit, and so what is rounded to 8 bits afterwards.
#define FOLD16(v) (((v(0) + v(8)) + (v(4) + v(12))) + ((v(2) + v(10)) + (v(6) + v(14))) + \
                   (((v(1) + v(9)) + (v(5) + v(13))) + ((v(3) + v(11)) + (v(7) + v(15)))))
static inline float fold16(local const float *v) {
#define V(i) v[i]
    return FOLD16(V);
#undef V
}

// The sum of squares as the CPU has it: lane i % 1024 takes value i, then the lanes are folded by halves.
#define SUM_LANES 1024
#define RMS_FACTOR(name, place)                                                                                      \
    static inline float name(const Ctx *c, place const float *x, uint n, float eps) {                                \
        uint used = min(n, (uint)SUM_LANES);                                                                          \
        ROLLED for (uint lane = c->tid; lane < used; lane += T) {                                                      \
            float sum = 0;                                                                                            \
            ROLLED for (uint i = lane; i < n; i += SUM_LANES) sum = fma(x[i], x[i], sum);                       \
            c->red[lane] = sum;                                                                                       \
        }                                                                                                             \
        LOCAL_BARRIER;                                                                                                \
        ROLLED for (uint fold = SUM_LANES / 2; fold > 0; fold /= 2) {                                                 \
            if (fold >= used) continue;                                                                               \
            ROLLED for (uint i = c->tid + fold; i < used; i += T) c->red[i - fold] += c->red[i];                             \
            used = fold;                                                                                              \
            LOCAL_BARRIER;                                                                                            \
        }                                                                                                             \
        const float sum = c->red[0];                                                                                  \
        LOCAL_BARRIER;                                                                                                \
        return 1.0f / sqrt(sum / (float)n + eps);                                                                     \
    }
RMS_FACTOR(rms_factor, global)
RMS_FACTOR(rms_factor_local, local)

// crates/kernels/src/ops/lanes.rs: the same steps, the same bits.
static inline float exp_(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -87.3f ? -87.3f : x;
    float n = rint(x * 1.44269504f);
    float r = fma(n, -0.69314575f, x);
    r = fma(n, -1.4286068e-6f, r);
    float p = 0.0013814581f;
    p = fma(p, r, 0.008368725f);
    p = fma(p, r, 0.04166839f);
    p = fma(p, r, 0.16666521f);
    p = fma(p, r, 0.49999994f);
    p = fma(fma(p, r, 1.0f), r, 1.0f);
    return isnan(x) ? x : (p + p) * as_float((uint)((int)n - 1 + 127) << 23);
}

static inline float times_logistic(float x, float t) {
    return x / (1.0f + exp_(0.0f - t));
}

// 0: SiLU, 1: ReLU squared, 2: GELU in its tanh form.
static inline float activate(uint which, float x) {
    if (which == 0) return times_logistic(x, x);
    if (which == 1) { x = x < 0.0f ? 0.0f : x; return x * x; }
    return times_logistic(x, x * 1.595769f * fma(x * x, 0.044715f, 1.0f));
}

#if PTX
#define DEVICE_FENCE asm volatile("membar.gl;" : : : "memory")
#else
#define DEVICE_FENCE mem_fence(CLK_GLOBAL_MEM_FENCE)
#endif

// Where all work-groups meet: a counter of arrivals. What a work-group wrote before it arrives others see once they have seen it arrive.
static ALWAYS void arrive(volatile global uint *counter) {
#if PTX && SM >= 70
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" : : "l"((ulong)counter) : "memory");
#else
    DEVICE_FENCE;
    atomic_add(counter, 1u);
#endif
}
static ALWAYS bool all_arrived(volatile global uint *counter, uint all) {
    ROLLED for (uint spins = 0; spins < 20000000u; spins++) {
#if PTX && SM >= 70
        uint seen;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"((ulong)counter) : "memory");
        if (seen >= all) return true;
#else
        if (*counter < all) continue;
        DEVICE_FENCE;
        return true;
#endif
    }
    return false;
}

// A meeting that a phase begins with: arrivals to wait for (0: nobody else is there), and whether they did not come.
typedef struct {
    volatile global uint *counter;
    uint all;
    local uint *lost;
} Meeting;
static ALWAYS bool meet(const Ctx *c, const Meeting *m) {
    if (m->all == 0) return true;
    if (c->tid == 0) *m->lost = !all_arrived(m->counter, m->all);
    GROUP_BARRIER;
    return !*m->lost;
}

// Tokens of the phase: first, count.
static inline uint first_token(const Ctx *c) { return c->P[FLAGS] & 1 ? c->out0 : 0; }
static inline uint count_tokens(const Ctx *c) { return c->P[FLAGS] & 1 ? c->nout : c->n; }

// The first unit of a work-group's share of a product. Units times work-groups are far below 2^32.
static inline uint first_unit(const Ctx *c, uint group) { return group * c->P[UNITS] / c->groups; }
// Whether units are dealt out to work-groups in turns, so that all of them read neighbouring rows: the memory's speed counts
// then. Fewer units are shared out evenly.
static inline bool is_dealt(const Ctx *c, local const uint *P) { return P[UNITS] >= 8 * TEAMS * c->groups; }
