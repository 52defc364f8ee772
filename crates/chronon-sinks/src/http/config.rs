//! The http sink's configuration, checked once and then trusted.

use std::collections::BTreeMap;

use chronon_kernel::{EffectId, EffectKey};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Method, Uri};
use serde::Deserialize;

#[cfg(feature = "tls")]
use super::tls::Trust;
use crate::ConfigError;

/// Bytes of an answer that are kept for the machine unless the configuration says otherwise.
const RESPONSE_BODY_MAX: usize = 64 * 1024;
/// The most that the configuration may ask for: the outcome becomes part of a log entry.
const RESPONSE_BODY_LIMIT: usize = 512 * 1024;

/// What an answer's status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The sink did it.
    Delivered,
    /// Under our key the sink is still at it.
    InProgress,
    /// Firmly not done: try again.
    Definite,
    /// Firmly no.
    Permanent,
    /// Firmly no, and leave me alone.
    Freeze,
    /// It may have acted.
    Ambiguous,
    /// A probe found nothing.
    NotFound,
}

/// What is done with an answer's body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResponseBody {
    /// It is part of the outcome: as JSON if it is JSON, else as a string.
    #[default]
    Keep,
    /// It is not read.
    Ignore,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    url: String,
    method: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    key_header: Option<String>,
    key_body_field: Option<String>,
    secret: Option<String>,
    #[serde(default)]
    allow_private: bool,
    ca: Option<String>,
    #[serde(default)]
    status: BTreeMap<String, Verdict>,
    #[serde(default)]
    response_body: ResponseBody,
    response_body_max: Option<usize>,
    probe: Option<ProbeText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeText {
    url: String,
    #[serde(default)]
    status: BTreeMap<String, Verdict>,
}

/// How a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) scheme: Scheme,
    pub(super) host: String,
    pub(super) port: u16,
    /// As it goes into the Host header.
    pub(super) authority: String,
    pub(super) path: String,
}

impl Target {
    fn parse(field: &'static str, url: &str) -> Result<Target, ConfigError> {
        let wrong = |why: String| ConfigError::Field { field, why };
        let uri: Uri = url.parse().map_err(|e| wrong(format!("{url:?} is no URL: {e}")))?;
        let (scheme, port) = match uri.scheme_str() {
            Some("http") => (Scheme::Http, 80),
            Some("https") if cfg!(feature = "tls") => (Scheme::Https, 443),
            Some("https") => {
                return Err(wrong(format!("{url:?} needs TLS, which this build does not have; use http://")));
            }
            Some(_) | None => return Err(wrong(format!("{url:?} must begin with https:// or http://"))),
        };
        let authority = uri.authority().ok_or_else(|| wrong(format!("{url:?} names no host")))?;
        if authority.as_str().contains('@') {
            return Err(wrong("a user and password do not belong in a URL: name a secret instead".into()));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong(format!("{url:?} names no host")));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => port,
            None => return Err(wrong(format!("{url:?} has no port from 0 to 65535 behind its host"))),
        };
        Ok(Target { scheme, host, port, authority: authority.as_str().to_owned(), path })
    }
}

/// What statuses mean: exact ones first, then classes, then the default table.
#[derive(Clone, Debug, Default)]
pub(super) struct StatusTable {
    exact: BTreeMap<u16, Verdict>,
    class: BTreeMap<u16, Verdict>,
}

impl StatusTable {
    fn parse(field: &'static str, text: &BTreeMap<String, Verdict>) -> Result<StatusTable, ConfigError> {
        let mut table = StatusTable::default();
        for (status, verdict) in text {
            let wrong = || ConfigError::Field {
                field,
                why: format!("{status:?} is no status: use 409 for one, or 5xx for a class"),
            };
            if let Some(class) = status.strip_suffix("xx") {
                let class: u16 = class.parse().map_err(|_| wrong())?;
                if !(1..=5).contains(&class) {
                    return Err(wrong());
                }
                table.class.insert(class, *verdict);
            } else {
                let status: u16 = status.parse().map_err(|_| wrong())?;
                if !(100..=599).contains(&status) {
                    return Err(wrong());
                }
                table.exact.insert(status, *verdict);
            }
        }
        Ok(table)
    }

    fn overridden(&self, status: u16) -> Option<Verdict> {
        self.exact.get(&status).or_else(|| self.class.get(&(status / 100))).copied()
    }

    /// What an answer to a call means.
    pub(super) fn call(&self, status: u16) -> Verdict {
        self.overridden(status).unwrap_or(match status {
            200..=299 => Verdict::Delivered,
            408 => Verdict::Ambiguous,
            409 => Verdict::InProgress,
            410 => Verdict::Freeze,
            429 => Verdict::Definite,
            // A redirect is not followed: whoever set the sink must name the right place.
            300..=499 => Verdict::Permanent,
            _ => Verdict::Ambiguous,
        })
    }

    /// What an answer to a probe means. Whatever is not a firm yes or no says nothing about the call.
    pub(super) fn probe(&self, status: u16) -> Verdict {
        self.overridden(status).unwrap_or(match status {
            200..=299 => Verdict::Delivered,
            404 => Verdict::NotFound,
            409 => Verdict::InProgress,
            _ => Verdict::Ambiguous,
        })
    }
}

/// A probe's address: `{key}` and `{effect}` stand for the effect's.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    url: String,
    pub(super) status: StatusTable,
}

impl Probe {
    pub(super) fn target(&self, key: &EffectKey, effect: EffectId) -> Result<Target, ConfigError> {
        let url = self.url.replace("{key}", key.as_str()).replace("{effect}", &effect.to_string());
        Target::parse("probe.url", &url)
    }
}

/// A configuration that can be carried out.
#[derive(Clone, Debug)]
pub(super) struct HttpConfig {
    pub(super) target: Target,
    pub(super) method: Method,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) key_header: HeaderName,
    pub(super) key_body_field: Option<String>,
    pub(super) secret: Option<String>,
    pub(super) allow_private: bool,
    #[cfg(feature = "tls")]
    pub(super) trust: Option<Trust>,
    pub(super) status: StatusTable,
    pub(super) response_body_max: Option<usize>,
    pub(super) probe: Option<Probe>,
}

/// Headers that the sink sets itself.
const OWN_HEADERS: [&str; 11] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "chronon-effect-id",
    "chronon-attempt",
    "chronon-fence",
    "traceparent",
];

impl HttpConfig {
    pub(super) fn parse(text: &str) -> Result<HttpConfig, ConfigError> {
        let text: Text =
            serde_json::from_str(text).map_err(|e| ConfigError::Unreadable { why: e.to_string() })?;
        let target = Target::parse("url", &text.url)?;
        let method = match text.method.as_deref() {
            None | Some("POST") => Method::POST,
            Some("PUT") => Method::PUT,
            Some("PATCH") => Method::PATCH,
            Some(other) => {
                let why = format!("{other:?} can't carry an effect: use POST, PUT or PATCH");
                return Err(ConfigError::Field { field: "method", why });
            }
        };
        let mut headers = Vec::new();
        for (name, value) in &text.headers {
            headers.push(header(name, value)?);
        }
        let key_header = text.key_header.as_deref().unwrap_or("idempotency-key");
        let (key_header, _) = header(key_header, "")?;
        let max = text.response_body_max.unwrap_or(RESPONSE_BODY_MAX);
        if RESPONSE_BODY_LIMIT < max {
            let why = format!("{max} is more than the limit of {RESPONSE_BODY_LIMIT} bytes");
            return Err(ConfigError::Field { field: "response_body_max", why });
        }
        let probe = match text.probe {
            None => None,
            Some(probe) => {
                let status = StatusTable::parse("probe.status", &probe.status)?;
                if !probe.url.contains("{key}") && !probe.url.contains("{effect}") {
                    let why = "must hold {key} or {effect}, or it could not ask about one effect".into();
                    return Err(ConfigError::Field { field: "probe.url", why });
                }
                let filled = probe.url.replace("{key}", "k").replace("{effect}", "1-0");
                Target::parse("probe.url", &filled)?;
                Some(Probe { url: probe.url, status })
            }
        };
        #[cfg(feature = "tls")]
        let trust = text.ca.as_deref().map(|ca| Trust::parse(Some(ca))).transpose()?;
        #[cfg(not(feature = "tls"))]
        if text.ca.is_some() {
            let why = "needs TLS, which this build does not have".into();
            return Err(ConfigError::Field { field: "ca", why });
        }
        Ok(HttpConfig {
            #[cfg(feature = "tls")]
            trust,
            target,
            method,
            headers,
            key_header,
            key_body_field: text.key_body_field,
            secret: text.secret,
            allow_private: text.allow_private,
            status: StatusTable::parse("status", &text.status)?,
            response_body_max: (text.response_body == ResponseBody::Keep).then_some(max),
            probe,
        })
    }
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), ConfigError> {
    let wrong = |why: String| ConfigError::Field { field: "headers", why };
    let name: HeaderName = name.parse().map_err(|_| wrong(format!("{name:?} can't name a header")))?;
    if OWN_HEADERS.contains(&name.as_str()) {
        return Err(wrong(format!("{name} is set by the sink itself")));
    }
    let value = HeaderValue::from_str(value)
        .map_err(|_| wrong(format!("the value of {name} holds bytes that a header can't")))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_status_table_is_the_documented_one() {
        let table = StatusTable::default();
        let call = |status| table.call(status);
        assert_eq!([200, 201, 204, 299].map(call), [Verdict::Delivered; 4]);
        assert_eq!(call(409), Verdict::InProgress);
        assert_eq!(call(429), Verdict::Definite);
        assert_eq!(call(410), Verdict::Freeze);
        assert_eq!([301, 302, 307, 400, 401, 403, 404, 422].map(call), [Verdict::Permanent; 8]);
        assert_eq!([408, 500, 502, 503, 504, 599].map(call), [Verdict::Ambiguous; 6]);
        let probe = |status| table.probe(status);
        assert_eq!([200, 404, 409].map(probe), [Verdict::Delivered, Verdict::NotFound, Verdict::InProgress]);
        assert_eq!([400, 401, 429, 500, 302].map(probe), [Verdict::Ambiguous; 5]);
    }

    #[test]
    fn a_status_or_a_class_can_be_given_another_meaning() {
        let config = HttpConfig::parse(
            r#"{"url":"http://example.com","status":{"404":"definite","5xx":"permanent","503":"ambiguous"}}"#,
        )
        .unwrap();
        assert_eq!(config.status.call(404), Verdict::Definite);
        assert_eq!(config.status.call(500), Verdict::Permanent);
        assert_eq!(config.status.call(503), Verdict::Ambiguous);
        assert_eq!(config.status.call(200), Verdict::Delivered);
    }

    #[test]
    fn a_configuration_that_cannot_be_carried_out_says_what_is_wrong() {
        for (text, part) in [
            ("{", "can't be read"),
            (r#"{"uri":"http://a"}"#, "unknown field `uri`"),
            (r#"{"url":"ftp://a"}"#, "must begin with https:// or http://"),
            #[cfg(not(feature = "tls"))]
            (r#"{"url":"https://a"}"#, "needs TLS"),
            (
                r#"{"url":"http://a","ca":"-----BEGIN"}"#,
                if cfg!(feature = "tls") { "no certificate" } else { "TLS" },
            ),
            (r#"{"url":"http://a","headers":{"traceparent":"x"}}"#, "set by the sink itself"),
            (r#"{"url":"/hook"}"#, "must begin with https:// or http://"),
            (r#"{"url":"http://u:p@a/"}"#, "name a secret"),
            (r#"{"url":"http://a:99999/"}"#, "no port from 0 to 65535"),
            (r#"{"url":"http://a","method":"GET"}"#, "use POST, PUT or PATCH"),
            (r#"{"url":"http://a","headers":{"webhook-id":"x"}}"#, "set by the sink itself"),
            (r#"{"url":"http://a","headers":{"b d":"x"}}"#, "can't name a header"),
            (r#"{"url":"http://a","status":{"4x":"definite"}}"#, "is no status"),
            (r#"{"url":"http://a","status":{"400":"maybe"}}"#, "unknown variant `maybe`"),
            (r#"{"url":"http://a","probe":{"url":"http://a/"}}"#, "{key}"),
            (r#"{"url":"http://a","response_body_max":99999999}"#, "limit"),
        ] {
            let error = HttpConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
