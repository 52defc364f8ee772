//! TLS towards a sink: whom we trust, and nothing that leaves before a handshake proved the name.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::ConfigError;

/// Whose certificates are believed.
#[derive(Clone, Debug)]
pub(super) struct Trust(Arc<ClientConfig>);

impl Trust {
    /// The authorities in this PEM text and no others; without one, those that Mozilla trusts. They come with the build,
    /// so that every replica believes the same and none needs a store of its own.
    pub(super) fn parse(authorities: Option<&str>) -> Result<Trust, ConfigError> {
        let wrong = |why: String| ConfigError::Field { field: "ca", why };
        let mut roots = RootCertStore::empty();
        match authorities {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(text) => {
                for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
                    let certificate = certificate.map_err(|e| wrong(format!("not readable as PEM: {e}")))?;
                    roots.add(certificate).map_err(|e| wrong(format!("a certificate can't be used: {e}")))?;
                }
                if roots.is_empty() {
                    return Err(wrong(
                        "holds no certificate: give PEM, from -----BEGIN CERTIFICATE-----".into(),
                    ));
                }
            }
        }
        // Passed explicitly: what an embedding program installs as its default is its own affair.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Trust(Arc::new(config)))
    }

    /// Shakes hands. Nothing of a request has left when it returns, so a failure here is definite.
    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| format!("{host}: {e}"))?;
        let connector = TlsConnector::from(Arc::clone(&self.0));
        connector.connect(name, stream).await.map_err(|e| format!("no TLS with {host}: {e}"))
    }
}
