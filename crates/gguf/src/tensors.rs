//! Tensor types by number, name and size, and the directory entry of one tensor.
//!
//! The table is the only place where a type is declared. It says how many bytes a shape takes, never what they mean.

use crate::Error;
use std::fmt;

/// One row of the table of tensor types: a number in the file, a name, and the rule for the size.
///
/// The constants can be used as patterns in a `match`. A number can stand for two types ([`TensorType::with_id`]),
/// a name for only one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorType {
    id: u32,
    name: &'static str,
    block: u32,
    block_bytes: u32,
    row_head: u32,
    tail: u32,
    rule: Rule,
}

/// What has to be a whole number of blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Rule {
    /// Every row.
    Rows,
    /// The tensor; blocks may straddle rows.
    Whole,
    /// TL2's own formula.
    Tl2,
}

macro_rules! types {
    ($($id:literal $const:ident $block:literal x $bytes:literal $(, row $row:literal)? $(, tail $tail:literal)? $(=> $rule:ident)?;)*) => {
        /// Every known type. `NAME: block weights x block bytes`.
        impl TensorType {
            $(
                #[doc = concat!("Type ", $id, ": ", $block, " weights in ", $bytes, " bytes",
                    $(", after ", $row, " bytes at the head of each row",)?
                    $(", and ", $tail, " bytes at the end of the tensor",)? ".")]
                pub const $const: TensorType = TensorType {
                    id: $id,
                    name: stringify!($const),
                    block: $block,
                    block_bytes: $bytes,
                    row_head: 0 $(+ $row)?,
                    tail: 0 $(+ $tail)?,
                    rule: types!(@rule $($rule)?),
                };
            )*
            /// The whole table, in order of the numbers; of two types with one number the upstream one comes first.
            pub const ALL: &[TensorType] = &[$(TensorType::$const),*];
        }
    };
    (@rule) => { Rule::Rows };
    (@rule $rule:ident) => { Rule::$rule };
}

// Activation types that are never stored (Q8_1, I8_S, Q8_K) and removed ones (4, 5, 31 to 33) are left out on purpose.
// 143 is also G8_0 of one other program; its files fail the size check.
types! {
    0 F32 1 x 4;
    1 F16 1 x 2;
    2 Q4_0 32 x 18;
    3 Q4_1 32 x 20;
    6 Q5_0 32 x 22;
    7 Q5_1 32 x 24;
    8 Q8_0 32 x 34;
    10 Q2_K 256 x 84;
    11 Q3_K 256 x 110;
    12 Q4_K 256 x 144;
    13 Q5_K 256 x 176;
    14 Q6_K 256 x 210;
    16 IQ2_XXS 256 x 66;
    17 IQ2_XS 256 x 74;
    18 IQ3_XXS 256 x 98;
    19 IQ1_S 256 x 50;
    20 IQ4_NL 32 x 18;
    21 IQ3_S 256 x 110;
    22 IQ2_S 256 x 82;
    23 IQ4_XS 256 x 136;
    24 I8 1 x 1;
    25 I16 1 x 2;
    26 I32 1 x 4;
    27 I64 1 x 8;
    28 F64 1 x 8;
    29 IQ1_M 256 x 56;
    30 BF16 1 x 2;
    34 TQ1_0 256 x 54;
    35 TQ2_0 256 x 66;
    36 I2_S 128 x 32, tail 32 => Whole;
    38 TL1 4 x 1, tail 32 => Whole;
    39 MXFP4 32 x 17;
    39 TL2 1 x 1, tail 32 => Tl2;
    40 NVFP4 64 x 36;
    41 Q1_0 128 x 18;
    42 Q2_0 64 x 18;
    42 Q2_0_G128 128 x 34;
    134 IQ1_BN 64 x 13, row 2;
    135 IQ2_BN 64 x 16, row 4;
    142 PQ2_0 128 x 34;
    143 PTQ1_0 128 x 28;
    335 IQ2_BN_R4 64 x 16, row 4;
}

impl TensorType {
    /// The type of this name, as [`TensorType::name`] gives it (upper case).
    pub fn by_name(name: &str) -> Option<TensorType> {
        Self::ALL.iter().copied().find(|ty| ty.name == name)
    }

    /// The types that files write as this number: none, one, or two.
    ///
    /// 39 is `MXFP4` upstream and `TL2` in bitnet.cpp; 42 is `Q2_0` with groups of 64 upstream and with groups of 128
    /// in older files. The parser tells them apart by the room each tensor has.
    pub fn with_id(id: u32) -> impl Iterator<Item = TensorType> {
        Self::ALL.iter().copied().filter(move |ty| ty.id == id)
    }

    /// The number in the file.
    pub const fn id(self) -> u32 {
        self.id
    }

    /// The name, such as `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Weights in one block.
    pub const fn block(self) -> u64 {
        self.block as u64
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> u64 {
        self.block_bytes as u64
    }

    /// Bytes before the first block of each row (a row scale), 0 for most types.
    pub const fn row_head_bytes(self) -> u64 {
        self.row_head as u64
    }

    /// Bytes after the last block of the tensor (a tensor scale and padding), 0 for most types.
    pub const fn tail_bytes(self) -> u64 {
        self.tail as u64
    }

    /// Whether blocks may straddle rows, so that only the element count must be a whole number of blocks.
    pub const fn is_whole_tensor(self) -> bool {
        !matches!(self.rule, Rule::Rows)
    }

    /// Bytes of a tensor of this shape (row length first), without padding to the alignment.
    ///
    /// `None` if the shape is not possible: a partial block, a zero, no or more than four dimensions, or a size
    /// that does not fit 63 bits.
    pub fn bytes(self, dims: &[u64]) -> Option<u64> {
        let n = elements(dims)?;
        let (&row, rest) = dims.split_first()?;
        let rows = elements(rest).unwrap_or(1);
        let bytes = match self.rule {
            Rule::Rows if row % self.block() != 0 => None,
            Rule::Rows => {
                let row_bytes = (row / self.block()).checked_mul(self.block_bytes())?;
                row_bytes.checked_add(self.row_head_bytes())?.checked_mul(rows)
            }
            Rule::Whole if n % self.block() != 0 => None,
            Rule::Whole => (n / self.block()).checked_mul(self.block_bytes()),
            Rule::Tl2 => {
                // The first 256 columns are stored in pairs (4 bits), the others in triples (5 bits).
                let triples = row.checked_sub(256)?.checked_mul(rows)? / 3;
                let pairs = rows.checked_mul(256)? / 2;
                let packed = triples.checked_mul(5)? / 8 + pairs.checked_mul(4)? / 8;
                packed.checked_next_multiple_of(32)
            }
        }?;
        bytes.checked_add(self.tail_bytes()).filter(|&bytes| i64::try_from(bytes).is_ok())
    }

    /// As [`TensorType::bytes`], saying what is wrong with the shape.
    pub(crate) fn checked_bytes(self, name: &str, dims: &[u64]) -> Result<u64, Error> {
        let name = || name.to_owned();
        if dims.is_empty() || dims.len() > MAX_DIMS {
            return Err(Error::BadDimensionCount { name: name(), found: dims.len() as u64 });
        }
        if dims.contains(&0) {
            return Err(Error::ZeroDimension { name: name(), dims: dims.to_vec() });
        }
        let too_large = || Error::TensorTooLarge { name: name(), dims: dims.to_vec() };
        let n = elements(dims).ok_or_else(too_large)?;
        let (what, counted, block) = match self.rule {
            Rule::Rows => ("row length", dims[0], self.block()),
            Rule::Whole => ("element count", n, self.block()),
            Rule::Tl2 if dims[0] < 256 => ("row length (256 or more)", 1, 256),
            Rule::Tl2 => ("element count", 0, 1),
        };
        if counted % block != 0 {
            return Err(Error::PartialBlock {
                name: name(),
                ty: self.name,
                dims: dims.to_vec(),
                what,
                block,
            });
        }
        self.bytes(dims).ok_or_else(too_large)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// GGUF tensors have one to four dimensions.
pub(crate) const MAX_DIMS: usize = 4;

/// Elements of a shape; `None` if it is not a possible one.
fn elements(dims: &[u64]) -> Option<u64> {
    if dims.is_empty() || dims.len() > MAX_DIMS || dims.contains(&0) {
        return None;
    }
    let n = dims.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim))?;
    i64::try_from(n).ok().map(|_| n)
}

/// One tensor of a file: name, type, shape and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique in the file.
    pub name: String,
    /// Decides the size; see [`TensorType`].
    pub ty: TensorType,
    /// One to four lengths, none 0, row length (the fastest) first: a matrix is `[in, out]`.
    pub dims: Vec<u64>,
    /// Where the data starts, in bytes from the start of the file.
    pub offset: u64,
    /// Size of the data, without padding.
    pub bytes: u64,
}

impl TensorInfo {
    /// Weights in one row, the input width of a matrix.
    pub fn row_len(&self) -> u64 {
        self.dims.first().copied().unwrap_or(0)
    }

    /// Number of rows: the product of all dimensions but the first.
    pub fn rows(&self) -> u64 {
        self.dims.iter().skip(1).product()
    }

    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.dims.iter().product()
    }

    /// The tensor's bytes. `file` is the whole file this entry was parsed from; a shorter one gives
    /// [`Error::TensorOutOfBounds`].
    pub fn data<'a>(&self, file: &'a [u8]) -> Result<&'a [u8], Error> {
        let end = self.offset.checked_add(self.bytes);
        let range = usize::try_from(self.offset).ok().zip(end.and_then(|end| usize::try_from(end).ok()));
        range.and_then(|(start, end)| file.get(start..end)).ok_or_else(|| Error::TensorOutOfBounds {
            name: self.name.clone(),
            offset: self.offset,
            bytes: self.bytes,
            file_bytes: file.len() as u64,
        })
    }
}
