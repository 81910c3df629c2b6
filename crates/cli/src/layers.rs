//! Numbers of layers as people type them for `--gpu-layers`: `12`, `auto`, `all`.

/// How much of a model goes to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuLayers {
    /// What measured rates and the device's memory say.
    Auto,
    /// Everything.
    All,
    /// The last layers, the head counted as one. More than there are is everything.
    Last(usize),
}

/// Parses one.
pub fn parse(text: &str) -> Result<GpuLayers, String> {
    match text.trim().to_lowercase().as_str() {
        "auto" => Ok(GpuLayers::Auto),
        "all" => Ok(GpuLayers::All),
        // A plus sign would parse, too.
        number if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
            // More digits than can be counted are more layers than any model has.
            Ok(number.parse().map_or(GpuLayers::All, GpuLayers::Last))
        }
        _ => Err(format!("{text:?} is no number of layers; wanted 0, 1, 2 and so on, auto, or all")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_layers_are_read_as_people_write_them() {
        for (text, layers) in [
            ("0", GpuLayers::Last(0)),
            ("12", GpuLayers::Last(12)),
            (" 007 ", GpuLayers::Last(7)),
            ("99999999999999999999999999", GpuLayers::All),
            ("auto", GpuLayers::Auto),
            ("ALL", GpuLayers::All),
        ] {
            assert_eq!(parse(text), Ok(layers), "{text}");
        }
        for text in ["", " ", "-1", "+3", "1.5", "10MB", "half", "0x10", "1 2"] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("no number of layers") && error.contains("auto"), "{text}: {error}");
        }
    }
}
