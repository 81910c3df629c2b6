//! Numbers of bytes as people type them: `10MB`, `1.5 GiB`, `4096`.

/// What a unit stands for; decimal as on a disk's label, binary with an `i`.
const UNITS: [(&str, u64); 9] = [
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("TIB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Parses a number of bytes, at least 1.
pub fn parse(text: &str) -> Result<u64, String> {
    let wanted = "wanted a size such as 10MB, 1.5GiB or 4000000";
    let upper = text.trim().to_uppercase();
    let split = UNITS.iter().find_map(|(name, factor)| Some((upper.strip_suffix(name)?, *factor)));
    let (number, factor) = match split {
        Some(split) => split,
        // 10M and 10G, as dd and head take them, are left out on purpose: there they mean powers of two or of ten.
        None => (upper.as_str(), 1),
    };
    let number = number.trim();
    if let Ok(whole) = number.parse::<u64>() {
        let bytes =
            whole.checked_mul(factor).ok_or_else(|| format!("{text:?} is more than can be counted"))?;
        return if bytes == 0 {
            Err("a size of zero holds nothing; wanted at least 1 byte".to_owned())
        } else {
            Ok(bytes)
        };
    }
    // Letters such as in `inf` and `nan` would parse, too.
    let digits = number.chars().all(|c| c.is_ascii_digit() || c == '.') && !number.is_empty();
    match number.parse::<f64>() {
        Ok(x) if digits && x * (factor as f64) < u64::MAX as f64 && x * factor as f64 >= 1.0 => {
            Ok((x * factor as f64).round() as u64)
        }
        Ok(x) if x < 0.0 => Err(format!("{text:?} is negative; {wanted}")),
        Ok(x) if digits && x * (factor as f64) < 1.0 => {
            Err(format!("{text:?} is less than a byte; {wanted}"))
        }
        _ => Err(format!("{text:?} is no size; {wanted}")),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("10MB", 10_000_000),
            ("10 mb", 10_000_000),
            ("1.5GiB", 3 << 29),
            ("4096", 4096),
            ("64KiB", 65_536),
            ("0.5kb", 500),
            ("7B", 7),
            (" 2 TB ", 2_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "MB",
            "0",
            "0MB",
            "0.0GB",
            "-1",
            "-5MB",
            "ten",
            "1e3",
            "inf",
            "NaN",
            "1.2.3MB",
            "10XB",
            "99999999TB",
            "0.1",
            "1,5GB",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("size") || error.contains("counted"), "{text}: {error}");
        }
    }
}
