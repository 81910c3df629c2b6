//! AMX: matrices of bytes in tile registers, sixteen lines of 64 bytes each.
//!
//! A tile product adds, to 16 x 16 sums, 64 products each: of 16 lines of signed bytes, a column of activations a line, with
//! codes in the order `[16 groups of four][16 rows][4]`. The compiler never uses these registers, so this file alone
//! says what is in them. What they hold costs a task switch some kilobytes: whoever configures them releases them.

use std::arch::asm;
use std::sync::OnceLock;

/// Whether the processor has tiles of bytes and the system lets this process use them.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_tiles() && may_use_tiles())
}

/// Leaf 7 names the instructions; bits 17 and 18 of XCR0 say that the system saves their registers.
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const OSXSAVE: u32 = 1 << 27;
    const TILE_AND_INT8: u32 = 0b11 << 24;
    const TILE_STATE: u64 = 0b11 << 17;
    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // SAFETY: the caller has seen that the system has turned this instruction on.
        unsafe { _xgetbv(0) }
    }
    __cpuid(0).eax >= 7
        && __cpuid(1).ecx & OSXSAVE != 0
        && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
        // SAFETY: OSXSAVE, just seen, says that `xgetbv` may be used.
        && unsafe { saved() } & TILE_STATE == TILE_STATE
}

/// Linux keeps room for tiles only for a process that has asked for it, threads that begin later included.
#[cfg(all(target_os = "linux", not(miri)))]
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let refused: usize;
    // SAFETY: the call takes two numbers and touches no memory of the process; the kernel changes `rcx` and `r11`.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => refused,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    refused == 0
}

/// Other systems have rules of their own, which nobody has tried here.
#[cfg(not(all(target_os = "linux", not(miri))))]
fn may_use_tiles() -> bool {
    false
}

/// Columns of a tile of activations, and rows of a tile of codes.
pub(crate) const SIDE: usize = 16;
/// Columns of two of them.
pub(crate) const COLUMNS: usize = 2 * SIDE;

/// Shapes of the eight registers: 0 to 3 hold sums, 4 and 5 activations, 6 and 7 codes.
#[repr(C, align(64))]
pub(crate) struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    /// Bytes of a line.
    width: [u16; 16],
    lines: [u8; 16],
}

impl Shapes {
    /// For `columns` columns at once, 1 to 32: sums and activations of the first 16 and of the rest.
    pub(crate) fn new(columns: usize) -> Self {
        let first = columns.min(SIDE);
        let second = (columns - first).max(1);
        let lines = [first, first, second, second, first, second, SIDE, SIDE].map(|n| n as u8);
        let mut shapes = Self { palette: 1, start: 0, reserved: [0; 14], width: [0; 16], lines: [0; 16] };
        shapes.width[..8].fill(64);
        shapes.lines[..8].copy_from_slice(&lines);
        shapes
    }
    /// Gives the calling thread's registers these shapes.
    ///
    /// # Safety
    /// [`is_available`]; the columns were 1 to 32.
    #[inline(always)]
    pub(crate) unsafe fn configure(&self) {
        // SAFETY: 64 readable bytes that describe shapes palette 1 has.
        unsafe {
            asm!("ldtilecfg [{0}]", in(reg) self, options(nostack, readonly, preserves_flags),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}

/// Leaves the calling thread without tiles.
///
/// # Safety
/// [`is_available`].
#[inline(always)]
pub(crate) unsafe fn release() {
    // SAFETY: by the caller.
    unsafe {
        asm!("tilerelease", options(nostack, nomem, preserves_flags),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
    }
}

/// Sums of up to 32 columns and 32 rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub [[i32; 2 * SIDE]; COLUMNS]);

/// Makes the sums of all 32 columns and rows zero.
///
/// # Safety
/// [`is_available`], and configured.
#[inline(always)]
pub(crate) unsafe fn zero() {
    // SAFETY: by the caller.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            options(nostack, nomem, preserves_flags),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _);
    }
}

/// Stores the sums; those of columns that were not configured stay what they are.
///
/// # Safety
/// As for [`zero`].
#[inline(always)]
pub(crate) unsafe fn store(sums: *mut Sums) {
    // SAFETY: by the caller; no line of a tile is outside the sums.
    unsafe {
        asm!(
            "tilestored [{0} + {1}], tmm0",
            "tilestored [{0} + {1} + 64], tmm1",
            "tilestored [{0} + {1} + 2048], tmm2",
            "tilestored [{0} + {1} + 2112], tmm3",
            in(reg) sums, in(reg) 128usize,
            options(nostack, preserves_flags));
    }
}

/// Adds 64 bytes of each column, which are `apart` bytes from each other, times as many of `codes`, pairs of vectors of 16
/// rows. For more than 16 columns; four products for four loads keep both sides busy.
///
/// # Safety
/// As for [`zero`]; all columns configured have 64 bytes, and `codes` has 2048.
#[inline(always)]
pub(crate) unsafe fn add_two(q: *const i8, apart: usize, codes: *const u8) {
    // SAFETY: by the caller; the shapes keep every load inside what it names.
    unsafe {
        asm!(
            "tileloaddt1 tmm4, [{q} + {apart}]",
            "tileloadd tmm6, [{codes} + {pair}]",
            "tileloadd tmm7, [{codes} + {pair} + 64]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloaddt1 tmm5, [{r} + {apart}]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            q = in(reg) q,
            r = in(reg) q.wrapping_add(SIDE * apart),
            apart = in(reg) apart,
            codes = in(reg) codes,
            pair = in(reg) 128usize,
            options(nostack, readonly, preserves_flags),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
        );
    }
}

/// [`add_two`] for up to 16 columns.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn add_one(q: *const i8, apart: usize, codes: *const u8) {
    // SAFETY: by the caller; the shapes keep every load inside what it names.
    unsafe {
        asm!(
            "tileloadd tmm4, [{q} + {apart}]",
            "tileloadd tmm6, [{codes} + {pair}]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{codes} + {pair} + 64]",
            "tdpbsud tmm1, tmm4, tmm7",
            q = in(reg) q,
            apart = in(reg) apart,
            codes = in(reg) codes,
            pair = in(reg) 128usize,
            options(nostack, readonly, preserves_flags),
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
        );
    }
}

/// Tile products from registers, `rounds` times four of them, and how many products of bytes that were.
///
/// # Safety
/// [`is_available`].
pub(crate) unsafe fn multiply_adds(rounds: usize) -> u64 {
    if rounds > 0 {
        // SAFETY: by the caller; nothing is read or written but registers.
        unsafe {
            Shapes::new(COLUMNS).configure();
            asm!(
                "2:",
                "tdpbsud tmm0, tmm4, tmm6",
                "tdpbsud tmm1, tmm4, tmm7",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) rounds => _,
                options(nostack, nomem),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
            release();
        }
    }
    (rounds * 4 * SIDE * SIDE * 64) as u64
}
