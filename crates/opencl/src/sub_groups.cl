// Whether sub-groups are what a program takes them for: so many work-items next to each other. TEAM is their size, T that of a
// work-group.

kernel WITH_TEAM __attribute__((reqd_work_group_size(T, 1, 1))) void look(global uint *out) {
    local uint here[T];
    const uint id = get_local_id(0);
    const bool sizes = get_sub_group_size() == TEAM && get_num_sub_groups() == T / TEAM;
    const bool places = get_sub_group_id() == id / TEAM && get_sub_group_local_id() == id % TEAM;
    here[id] = id;
    sub_group_barrier(CLK_LOCAL_MEM_FENCE);
    uint other = here[id ^ TEAM / 2];
#if SHUFFLES
    if (sub_group_shuffle_xor((float)id, (uint)TEAM / 2) != (float)other) other = id;
#endif
    if (sizes && places && other == (id ^ TEAM / 2)) out[id] = 1;
}
