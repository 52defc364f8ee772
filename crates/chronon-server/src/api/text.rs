//! Durations, JSON fragments and parameters as the API writes and reads them.

use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use chronon_kernel::Consistency;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::problem::Problem;

/// A duration as text: a whole number and `ms`, `s`, `m`, `h` or `d`; without a unit, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Span {
    /// Reads one.
    pub(crate) fn parse(text: &str) -> Result<Span, Problem> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let millis_each = match unit {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(Span::wrong(text)),
        };
        let number: u64 = number.parse().map_err(|_| Span::wrong(text))?;
        let millis = number.checked_mul(millis_each).ok_or_else(|| Span::wrong(text))?;
        Ok(Span(Duration::from_millis(millis)))
    }

    fn wrong(text: &str) -> Problem {
        let detail =
            format!("{text:?} is no duration: use a whole number and ms, s, m, h or d, like 500ms or 24h");
        Problem::new(400, "parameter", detail)
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let millis = self.0.as_millis();
        for (unit, each) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
            if millis != 0 && millis.is_multiple_of(each) {
                return write!(f, "{}{unit}", millis / each);
            }
        }
        write!(f, "{millis}ms")
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        Span::parse(&text).map_err(|_| {
            serde::de::Error::custom(format!(
                "{text:?} is no duration: use a whole number and ms, s, m, h or d"
            ))
        })
    }
}

/// Reads `?timeout=`.
pub(crate) fn timeout(text: Option<&str>) -> Result<Option<Duration>, Problem> {
    text.map(|text| Span::parse(text).map(|span| span.0)).transpose()
}

/// Reads `?consistency=`: `linearizable` (unless told otherwise), `local`, `at_least:<op>`.
pub(crate) fn consistency(text: Option<&str>) -> Result<Consistency, Problem> {
    let wrong = |text: &str| {
        let detail = format!("{text:?} is no consistency: use linearizable, local or at_least:<op>");
        Problem::new(400, "parameter", detail)
    };
    match text {
        None | Some("linearizable") => Ok(Consistency::Linearizable),
        Some("local") => Ok(Consistency::Local),
        Some(text) => {
            let op =
                text.strip_prefix("at_least:").and_then(|op| op.parse().ok()).ok_or_else(|| wrong(text))?;
            Ok(Consistency::AtLeast(op))
        }
    }
}

/// The parameter of what is only looked at.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Freshness {
    consistency: Option<String>,
}

impl Freshness {
    /// What it asks for.
    pub(crate) fn consistency(&self) -> Result<Consistency, Problem> {
        consistency(self.consistency.as_deref())
    }
}

/// The Idempotency-Key of a request, if it has one: the quoted and the bare form are one key.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text =
        value.to_str().map_err(|_| Problem::new(400, "key", "the idempotency key is not visible ASCII"))?;
    unquote(text.trim()).map(Some)
}

/// A key without its quotes (a string of RFC 8941), checked for length.
pub(crate) fn unquote(text: &str) -> Result<String, Problem> {
    let key = match text.strip_prefix('"') {
        None => text.to_owned(),
        Some(rest) => {
            let inner = rest
                .strip_suffix('"')
                .ok_or_else(|| Problem::new(400, "key", "the key's quote is not closed"))?;
            let mut key = String::with_capacity(inner.len());
            let mut letters = inner.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    '\\' => match letters.next() {
                        Some(escaped @ ('"' | '\\')) => key.push(escaped),
                        _ => return Err(Problem::new(400, "key", "only \\\" and \\\\ are escapes in a key")),
                    },
                    '"' => return Err(Problem::new(400, "key", "a quote inside a key is written \\\"")),
                    letter => key.push(letter),
                }
            }
            key
        }
    };
    if key.is_empty() || crate::admission::KEY_SIZE_MAX < key.len() {
        return Err(Problem::new(400, "key", "an idempotency key has 1 to 255 bytes"));
    }
    Ok(key)
}

/// JSON text as a piece of a larger JSON text, unchanged.
pub(crate) fn raw(text: String) -> Result<Box<RawValue>, Problem> {
    RawValue::from_string(text).map_err(|error| Problem::new(500, "unexpected", format!("not JSON: {error}")))
}

/// A JSON answer.
pub(crate) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(axum::http::header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => Problem::new(500, "unexpected", error.to_string()).into_response(),
    }
}

/// Reads a JSON body; an empty one reads as `{}`.
pub(crate) fn body<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, Problem> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(Problem::unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quoted_and_the_bare_form_are_one_key() {
        assert_eq!(unquote("abc").unwrap(), "abc");
        assert_eq!(unquote("\"abc\"").unwrap(), "abc");
        assert_eq!(unquote(r#""a\"b\\c""#).unwrap(), r#"a"b\c"#);
        for wrong in ["", "\"\"", "\"abc", r#""a"b""#, r#""a\n""#] {
            assert!(unquote(wrong).is_err(), "{wrong}");
        }
        assert!(unquote(&"k".repeat(255)).is_ok());
        assert!(unquote(&"k".repeat(256)).is_err());
    }

    #[test]
    fn a_duration_reads_back_as_it_is_written() {
        for text in ["0ms", "1ms", "999ms", "1s", "90s", "5m", "24h", "3d"] {
            let span = Span::parse(text).unwrap();
            assert_eq!(Span::parse(&span.to_string()).unwrap(), span, "{text}");
        }
        assert_eq!(Span::parse("5").unwrap().0, Duration::from_secs(5));
        for wrong in ["", "s", "1.5s", "-1s", "1w", "99999999999999999999s", "18446744073709551615d"] {
            assert!(Span::parse(wrong).is_err() || wrong.is_empty(), "{wrong}");
        }
    }
}
