//! The program's text: the parts in `cl/`, and for every stored form that a model uses the products it needs.

use super::compile::AS_WORDS;
use super::formats::{FLOAT, STORED, Stored};
use super::phase::{Do, WORDS, word};
use nexaquant_opencl::{Kind, SubGroups};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Sizes that the program is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Work-items in a work-group.
    pub group: usize,
    /// Work-items in a team.
    pub lanes: usize,
    /// Rows of a unit.
    pub rows: usize,
    /// Columns taken together in a prompt.
    pub columns: usize,
    /// What instructions there are.
    pub kind: Kind,
    /// NVIDIA's compute capability times ten, 0 elsewhere.
    pub sm: u32,
    /// A team is one of these.
    pub sub: Option<SubGroups>,
}

impl Shape {
    /// Whether the program has `cl/tiles.cl`.
    pub fn has_tiles(&self) -> bool {
        self.kind == Kind::Ptx && self.sm >= 80 && self.lanes == 32
    }

    /// Whether it has `attend_many` of `cl/attention.cl`, for heads of `head_dim` values.
    pub fn has_attend_many(&self, head_dim: usize) -> bool {
        self.kind == Kind::Ptx && self.group == 256 && self.lanes == 32 && [64, 128, 256].contains(&head_dim)
    }
}

/// What a model's steps are compiled for: what the compiler knows costs neither registers nor instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Traits {
    /// Stored forms of matrices ([`super::compile::OnDevice::code`]).
    pub codes: BTreeSet<u32>,
    /// Bit g is set if there are inputs of grain g.
    pub grains: u32,
    /// Type of the cache's values, as the kernels number them, and values of a head.
    pub kv: u32,
    pub head_dim: usize,
    /// Phases of one token whose words the compiler knows ([`Phase::known`]), and work-groups.
    pub known: Vec<[u32; WORDS]>,
    pub groups: usize,
}

/// Where the activations of a product are, how many columns at a time, and whether steps of one token need it, and others.
const PLACES: [(&str, &str, bool, [bool; 2]); 3] = [
    ("local", "local", false, [true, false]),
    ("global", "one", false, [true, true]),
    ("global", "many", true, [false, true]),
];

/// The whole program for steps of one token (`single`) or of several.
pub(super) fn program(shape: &Shape, traits: &Traits, single: bool) -> String {
    let codes = &traits.codes;
    let mut text = shape.sub.as_ref().map_or_else(String::new, SubGroups::header);
    let (ptx, dot) = (u32::from(shape.kind == Kind::Ptx), u32::from(shape.kind == Kind::DotProduct));
    let (group, lanes, rows) = (shape.group, shape.lanes, shape.rows);
    let _ = writeln!(
        text,
        "#define T {group}\n#define LANES {lanes}\n#define ROWS {rows}\n#define PTX {ptx}\n#define SM {}\n#define DOT {dot}\n#define SUB {}\n#define SINGLE {}",
        shape.sm,
        u32::from(shape.sub.is_some()),
        u32::from(single)
    );
    let Traits { grains, kv, head_dim, .. } = traits;
    let _ = writeln!(text, "#define GRAINS {grains}\n#define KV_KIND {kv}\n#define HEAD_DIM {head_dim}");
    text += "#define CAT2(a, b) a##b\n#define CAT(a, b) CAT2(a, b)\n#define AS_INT(x) as_float(x)\n";
    text += include_str!("cl/base.cl");
    text += include_str!("cl/row.cl");
    text += include_str!("cl/ternary.cl");
    text += include_str!("cl/blocks.cl");
    text += include_str!("cl/weights.cl");
    for place in ["local", "global"] {
        let _ = writeln!(text, "#define AS {place}");
        text += include_str!("cl/quantize.cl");
        text += include_str!("cl/ternary_dot.cl");
        text += include_str!("cl/blocks_dot.cl");
        text += "#undef AS\n";
    }
    let stored = |code: u32| STORED.iter().find(|s| s.code == code % FLOAT);
    for (place, name, many, steps) in PLACES {
        if !steps[usize::from(!single)] {
            continue;
        }
        let columns = if many { shape.columns } else { 1 };
        let _ = writeln!(text, "#define AS {place}\n#define COLUMNS {columns}");
        let mut cases = String::new();
        for &code in codes {
            let Some(s) = stored(code) else { continue };
            // Floats are read where they are.
            if place == "local" && (code >= FLOAT || (17..=22).contains(&s.code)) {
                continue;
            }
            let part = format!("part_{code}_{name}");
            text += &one_product(s, code, &part);
            let _ = writeln!(cases, "    case {code}: {part}(c, p, unit, x, stride, last, out); break;");
        }
        let arguments = "const Ctx *c, local const uint *p, uint unit, AS const uchar *x, uint stride, uint last, float *out";
        let _ = writeln!(
            text,
            "static void parts_{name}({arguments}) {{\n    switch (p[FMT]) {{\n{cases}    }}\n}}"
        );
        let _ = writeln!(text, "#define PARTS parts_{name}\n#define UNITS_OF units_{name}");
        text += include_str!("cl/units.cl");
        text += "#undef PARTS\n#undef UNITS_OF\n#undef AS\n#undef COLUMNS\n";
    }
    text += "static float weight_of(const Ctx *c, local const uint *p, uint row, uint e) {\n    const uint cols = c->P[COLS];\n    switch (p[FMT]) {\n";
    for &code in codes {
        let Some(s) = stored(code) else { continue };
        let strides = strides(s).join(", ");
        let _ = writeln!(
            text,
            "    case {code}: {{ Row r = row_of(c, p, row, {strides}); return weight_{}(&r, e); }}",
            s.name
        );
    }
    text += "    }\n    return 0;\n}\nstatic uint stride0(uint code, uint cols) {\n    switch (code) {\n";
    for &code in codes {
        let Some(s) = stored(code) else { continue };
        let _ = writeln!(text, "    case {code}: return {};", strides(s)[0]);
    }
    text += "    }\n    return 16;\n}\n";
    text += include_str!("cl/attention.cl");
    if single {
        text += &known_phases(traits);
    }
    text += include_str!("cl/tiles.cl");
    text += include_str!("cl/phases.cl");
    text
}

/// A function for each phase of which the compiler knows the words, and where they are called.
fn known_phases(traits: &Traits) -> String {
    let mut text = String::new();
    if traits.known.is_empty() {
        return text;
    }
    let _ = writeln!(text, "#define GROUPS {}", traits.groups);
    text += include_str!("cl/known.cl");
    let mut cases = String::new();
    for (i, words) in traits.known.iter().enumerate() {
        let _ = writeln!(text, "#define NTH {i}");
        for (at, word) in words.iter().enumerate() {
            let _ = writeln!(text, "#define K_{at} {word}u");
        }
        text += if words[word::KIND] == Do::Attend as u32 {
            include_str!("cl/attend_head.cl")
        } else if words[word::FLAGS] & AS_WORDS != 0 {
            include_str!("cl/words.cl")
        } else {
            include_str!("cl/logits.cl")
        };
        text += "#undef NTH\n";
        for at in 0..WORDS {
            let _ = writeln!(text, "#undef K_{at}");
        }
        let _ = write!(cases, " case {}: met = known_phase_{i}(c, &meeting); break;", i + 1);
    }
    let _ = writeln!(text, "#define KNOWN_PHASES{cases}");
    text
}

/// Bytes of a row in each of four planes, as the program computes them.
fn strides(s: &Stored) -> Vec<String> {
    let mut strides: Vec<_> =
        s.fields.iter().map(|(_, len)| format!("STRIDE(cols / {}, {len})", s.block)).collect();
    if s.row_scale {
        strides.push("4".to_owned());
    }
    strides.resize(4, "0".to_owned());
    strides
}

fn one_product(s: &Stored, code: u32, part: &str) -> String {
    let mut text = String::new();
    let mut define = |name: &str, value: &str| {
        let _ = writeln!(text, "#define {name} {value}");
    };
    for (k, stride) in strides(s).iter().enumerate() {
        define(&format!("F_S{k}(cols)"), stride);
    }
    define("PART", part);
    match &s.code_of {
        Some(of) if code < FLOAT => {
            let whole = s.row_scale;
            define("F_ITEM", of.item);
            define("F_LOAD(it, row, i)", &format!("{}(it, row, i)", of.load));
            define("F_STEP(it, row, acc)", of.step);
            define("F_ITEMS(cols)", &format!("({})", of.items));
            define("F_ACC", if whole { "int" } else { "float" });
            define("F_BITS(x)", if whole { "as_float(x)" } else { "(x)" });
        }
        _ => {
            define("F_ITEM", "float");
            define("F_LOAD(it, row, i)", &format!("*(it) = weight_{}(row, i)", s.name));
            define("F_STEP(it, row, acc)", "fma(*(it), ((AS const float *)rec)[i], acc)");
            define("F_ITEMS(cols)", "(cols)");
            define("F_ACC", "float");
            define("F_BITS(x)", "(x)");
        }
    }
    text += include_str!("cl/part.cl");
    for name in
        ["F_S0", "F_S1", "F_S2", "F_S3", "PART", "F_ITEM", "F_LOAD", "F_STEP", "F_ITEMS", "F_ACC", "F_BITS"]
    {
        let _ = writeln!(text, "#undef {name}");
    }
    text
}
