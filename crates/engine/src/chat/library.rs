//! What templates expect to find besides Jinja itself: Python's methods of strings, Hugging Face's functions, and
//! filters whose result may be much longer than their input, rewritten so that they ask first.

use super::sandbox::Limits;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::fmt::Write as _;
use std::sync::Arc;

/// Filters that are taken away: chat templates do not use them, and they make much out of little.
const REMOVED_FILTERS: &[&str] =
    &["format", "pprint", "batch", "slice", "zip", "chain", "sum", "lines", "string"];

/// Most elements of a range.
const MOST_STEPS: i64 = 10_000;
/// Widest indentation.
const MOST_INDENT: usize = 16;

/// Hugging Face's extension that marks what the assistant says; for training only.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}").map(|end| end + 2) else {
            out.push_str(tag);
            return out;
        };
        let inner = &tag[2..end - 2];
        let (left, right) = (inner.starts_with('-'), inner.ends_with('-'));
        match inner.trim_matches(['-', '+']).trim() {
            // An empty comment keeps what the tag said about the blanks around it.
            "generation" | "endgeneration" => {
                out.push_str(if left { "{#-" } else { "{#" });
                out.push_str(if right { "-#}" } else { "#}" });
            }
            _ => out.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

/// Text of a value as Python prints it, for the values templates print.
pub(super) fn to_text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_owned(),
        _ => value.to_string(),
    }
}

fn wrong(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Adds everything to an environment. `now`: seconds since 1970.
pub(super) fn install(env: &mut Environment, limits: &Arc<Limits>, now: u64) {
    for name in REMOVED_FILTERS {
        env.remove_filter(name);
    }
    env.remove_global("debug");

    let limited = limits.clone();
    env.add_function("raise_exception", move |message: String| -> Result<Value, Error> {
        Err(limited.refuse(message))
    });
    env.add_function("strftime_now", move |format: &str| strftime(format, now));
    env.add_function("range", range);

    let limited = limits.clone();
    env.add_filter("string", move |value: Value| {
        limited.size(&value)?;
        Ok::<_, Error>(to_text(&value))
    });
    let limited = limits.clone();
    env.add_filter("tojson", move |value: Value, indent: Option<usize>, options: Kwargs| {
        to_json(&limited, &value, indent, &options)
    });
    let limited = limits.clone();
    env.add_filter("join", move |values: Value, separator: Option<String>, options: Kwargs| {
        let attribute: Option<String> = options.get("attribute")?;
        options.assert_all_used()?;
        join(&limited, &values, separator.as_deref().unwrap_or_default(), attribute.as_deref())
    });
    let limited = limits.clone();
    env.add_filter("replace", move |text: String, old: String, new: String, most: Option<i64>| {
        replace(&limited, &text, &old, &new, most)
    });
    let limited = limits.clone();
    env.add_filter(
        "indent",
        move |text: String, width: Option<usize>, first: Option<bool>, options: Kwargs| {
            let width = width.or(options.get("width")?).unwrap_or(4);
            let first = first.or(options.get("first")?).unwrap_or(false);
            let blank = options.get::<Option<bool>>("blank")?.unwrap_or(false);
            options.assert_all_used()?;
            indent(&limited, &text, width, first, blank)
        },
    );
    let limited = limits.clone();
    env.set_unknown_method_callback(move |state, value, method, arguments| {
        method_call(&limited, state, value, method, arguments)
    });
}

fn method_call(
    limits: &Limits,
    state: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    match (value.as_str(), method, arguments) {
        (Some(text), "replace", [old, new, rest @ ..]) => {
            let most = rest.first().map(|most| i64::try_from(most.clone())).transpose()?;
            let (Some(old), Some(new)) = (old.as_str(), new.as_str()) else {
                return Err(wrong("replace wants strings"));
            };
            replace(limits, text, old, new, most)
        }
        (Some(separator), "join", [values]) => join(limits, values, separator, None),
        (Some(_), "format", _) => Err(wrong("strings have no method format here")),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

/// Python's range, limited.
fn range(start: i64, stop: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (start, stop, step) = stop.map_or((0, start, 1), |stop| (start, stop, step.unwrap_or(1)));
    let distance = i128::from(stop) - i128::from(start);
    let count = match step {
        0 => return Err(wrong("range with a step of 0")),
        1.. => (distance + i128::from(step) - 1) / i128::from(step),
        _ => (distance + i128::from(step) + 1) / i128::from(step),
    };
    if count > i128::from(MOST_STEPS) {
        return Err(wrong(format!("range of {count} elements; at most {MOST_STEPS} are possible")));
    }
    Ok((0..count.max(0) as i64).map(|i| start + i * step).collect())
}

fn join(limits: &Limits, values: &Value, separator: &str, attribute: Option<&str>) -> Result<Value, Error> {
    let size = limits.size(values)?;
    let count = values.len().unwrap_or(size / 16);
    limits.reserve(size.saturating_add(separator.len().saturating_mul(count)))?;
    let mut text = String::new();
    for (i, value) in values.try_iter()?.enumerate() {
        if i > 0 {
            text.push_str(separator);
        }
        text.push_str(&to_text(&attribute.map_or(Ok(value.clone()), |name| value.get_attr(name))?));
    }
    Ok(Value::from(text))
}

fn replace(limits: &Limits, text: &str, old: &str, new: &str, most: Option<i64>) -> Result<Value, Error> {
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() }.min(most);
    limits.reserve(text.len().saturating_add(new.len().saturating_mul(found)))?;
    Ok(Value::from(text.replacen(old, new, most)))
}

fn indent(limits: &Limits, text: &str, width: usize, first: bool, blank: bool) -> Result<Value, Error> {
    if width > MOST_INDENT {
        return Err(wrong(format!("indentation by {width}; at most {MOST_INDENT} is possible")));
    }
    limits.reserve(text.len().saturating_mul(width + 1))?;
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i > 0 || first) && (blank || !line.is_empty()) {
            out.push_str(&" ".repeat(width));
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// JSON as Python's `json.dumps` writes it with `ensure_ascii=False`.
fn to_json(limits: &Limits, value: &Value, indent: Option<usize>, options: &Kwargs) -> Result<Value, Error> {
    let indent = indent.or(options.get("indent")?);
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    if indent.is_some_and(|indent| indent > MOST_INDENT) {
        return Err(wrong(format!("indentation by more than {MOST_INDENT}")));
    }
    // A character may take six; an element may take a line indented by the depth.
    limits.reserve(limits.size(value)?.saturating_mul(if ascii { 12 } else { 6 }))?;
    let separators = separators.filter(|both| both.len() == 2);
    let (item, key) = match &separators {
        Some(both) => (both[0].as_str(), both[1].as_str()),
        None => (if indent.is_some() { "," } else { ", " }, ": "),
    };
    let mut writer = JsonWriter { out: String::new(), indent, item, key, ascii, sorted, depth: 0 };
    writer.value(value)?;
    Ok(Value::from(writer.out))
}

struct JsonWriter<'a> {
    out: String,
    indent: Option<usize>,
    item: &'a str,
    key: &'a str,
    ascii: bool,
    sorted: bool,
    /// The limits have checked that this stays small.
    depth: usize,
}

impl JsonWriter<'_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(['[', ']'], &items, Self::value)?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.container(['{', '}'], &keys, |writer, key| {
                    writer.text(&key.to_string());
                    writer.out.push_str(writer.key);
                    writer.value(&value.get_item(key)?)
                })?;
            }
            _ => self.text(&value.to_string()),
        }
        Ok(())
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        items: &[Value],
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        self.depth += 1;
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(self.item);
            }
            self.line();
            write(self, item)?;
        }
        self.depth -= 1;
        if !items.is_empty() {
            self.line();
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.push_str(&" ".repeat(indent * self.depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Python's `strftime` of a time in UTC, as far as chat templates use it.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let written = match chars.next() {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:02}", year % 100),
            Some('m') => write!(out, "{month:02}"),
            Some('d') => write!(out, "{day:02}"),
            Some('e') => write!(out, "{day:2}"),
            Some('B') => write!(out, "{month_name}"),
            Some('b' | 'h') => write!(out, "{}", &month_name[..3]),
            Some('A') => write!(out, "{day_name}"),
            Some('a') => write!(out, "{}", &day_name[..3]),
            Some('H') => write!(out, "{hour:02}"),
            Some('I') => write!(out, "{:02}", (hour + 11) % 12 + 1),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(out, "{minute:02}"),
            Some('S') => write!(out, "{second:02}"),
            Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => write!(out, "UTC"),
            Some('z') => write!(out, "+0000"),
            Some('%') => write!(out, "%"),
            // `%-d`: without the zero in front.
            Some('-') => match chars.next() {
                Some('d') => write!(out, "{day}"),
                Some('m') => write!(out, "{month}"),
                Some('H') => write!(out, "{hour}"),
                Some('I') => write!(out, "{}", (hour + 11) % 12 + 1),
                other => return Err(wrong(format!("strftime_now does not know %-{}", other.unwrap_or(' ')))),
            },
            other => return Err(wrong(format!("strftime_now does not know %{}", other.unwrap_or(' ')))),
        };
        written.map_err(Error::from)?;
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01: Howard Hinnant's algorithm, in which years begin in March.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, wanted) in [
            (0, "1970-01-01 Thu 12 AM 00"),
            (951_782_400, "2000-02-29 Tue 12 AM 00"),
            (1_709_251_199, "2024-02-29 Thu 11 PM 23"),
            (1_721_952_000, "2024-07-26 Fri 12 AM 00"),
        ] {
            assert_eq!(strftime("%Y-%m-%d %a %I %p %H", seconds).unwrap(), wanted);
        }
        assert_eq!(
            strftime("%d %b %Y, %A %B %-d %e%%", 1_721_952_000).unwrap(),
            "26 Jul 2024, Friday July 26 26%"
        );
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }

    #[test]
    fn generation_tags_leave_their_blanks() {
        assert_eq!(
            without_generation_tags("a{% generation %}b{%- endgeneration -%} c{% if x %}{%"),
            "a{##}b{#--#} c{% if x %}{%"
        );
        assert_eq!(without_generation_tags("{%- generation%}x{{ '{%' }}"), "{#-#}x{{ '{%' }}");
    }
}
