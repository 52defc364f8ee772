//! Secrets: named in a sink's configuration, read on each node, never in the log.

use std::fmt;
use std::sync::Arc;

type Find = dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync;

/// Where a node finds its secrets.
#[derive(Clone)]
pub struct Secrets(Arc<Find>);

impl Secrets {
    /// From the environment: the secret `psp-key` is the variable `CHRONON_SECRET_PSP_KEY`.
    pub fn from_environment() -> Secrets {
        Secrets::from_fn(|name| std::env::var(Secrets::variable(name)).ok().map(String::into_bytes))
    }

    /// From anywhere.
    pub fn from_fn(find: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Secrets {
        Secrets(Arc::new(find))
    }

    /// The secret of that name.
    pub fn find(&self, name: &str) -> Option<Vec<u8>> {
        (self.0)(name)
    }

    /// The environment variable that holds the secret of that name.
    pub fn variable(name: &str) -> String {
        let name = name.to_ascii_uppercase();
        format!("CHRONON_SECRET_{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}
