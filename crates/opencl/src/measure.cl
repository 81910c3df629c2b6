// What a device does at best: reading, being launched, meeting.

kernel void scan(global const uint4 *x, uint n, global uint *out) {
    uint4 a = 0, b = 0, c = 0, d = 0;
    const uint step = get_global_size(0);
    uint i = get_global_id(0);
    for (; i + 3 * step < n; i += 4 * step) {
        a ^= x[i];
        b ^= x[i + step];
        c ^= x[i + 2 * step];
        d ^= x[i + 3 * step];
    }
    for (; i < n; i += step) a ^= x[i];
    a ^= b ^ c ^ d;
    // Never true of zeros; the compiler does not know.
    if ((a.x ^ a.y ^ a.z ^ a.w) == 0x12345678u) out[0] = 1;
}

kernel void nothing(global uint *out, uint n) {
    if (n == 0xffffffffu) out[0] = n;
}

kernel void meet(volatile global uint *count, uint times) {
    for (uint i = 1; i <= times; i++) {
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
        if (get_local_id(0) == 0) {
            atomic_add(count, 1u);
            uint spins = 0;
            while (*count < i * get_num_groups(0) && spins < 100000000u) spins++;
        }
        barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
    }
}
