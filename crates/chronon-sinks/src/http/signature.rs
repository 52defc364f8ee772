//! Signatures of Standard Webhooks: with a shared secret (v1) or with a private key (v1a).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signer as _, SigningKey};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// A shared secret in the form of Standard Webhooks begins like this; the rest is base64.
const SHARED_PREFIX: &[u8] = b"whsec_";
/// A private key begins like this; the rest is base64 of 32 bytes, or of those and the 32 of its public key.
const PRIVATE_PREFIX: &[u8] = b"whsk_";

/// What a sink's calls are signed with.
pub(super) enum Signer {
    /// v1: HMAC-SHA256.
    Shared(Vec<u8>),
    /// v1a: Ed25519 (RFC 8032). The receiver needs no secret.
    Private(Box<SigningKey>),
}

impl Signer {
    /// Reads a secret. One without a prefix is a shared one, byte for byte. The error says what is wrong, and never
    /// what the secret is.
    pub(super) fn parse(secret: Vec<u8>) -> Result<Signer, String> {
        let decoded = |encoded: &[u8], prefix| {
            let wrong = |error| format!("it begins with {prefix} and is not base64 after it: {error}");
            BASE64.decode(encoded.trim_ascii()).map_err(wrong)
        };
        if let Some(encoded) = secret.strip_prefix(SHARED_PREFIX) {
            return decoded(encoded, "whsec_").map(Signer::Shared);
        }
        let Some(encoded) = secret.strip_prefix(PRIVATE_PREFIX) else { return Ok(Signer::Shared(secret)) };
        let key = decoded(encoded, "whsk_")?;
        let key = if let Ok(seed) = <&[u8; 32]>::try_from(key.as_slice()) {
            SigningKey::from_bytes(seed)
        } else if let Ok(pair) = <&[u8; 64]>::try_from(key.as_slice()) {
            SigningKey::from_keypair_bytes(pair)
                .map_err(|_| "its second half is not the public key of its first".to_owned())?
        } else {
            return Err(format!("an Ed25519 key has 32 or 64 bytes after whsk_, this one {}", key.len()));
        };
        Ok(Signer::Private(Box::new(key)))
    }

    /// The value of `webhook-signature`: the scheme, and the signature of `id.timestamp.body`.
    pub(super) fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let parts = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
        match self {
            Signer::Shared(secret) => {
                let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
                parts.iter().for_each(|part| mac.update(part));
                format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
            }
            Signer::Private(key) => format!("v1a,{}", BASE64.encode(key.sign(&parts.concat()).to_bytes())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};

    /// The example of the specification's reference implementations.
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIMESTAMP: &str = "1614265330";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;

    fn signed(secret: &str) -> String {
        let signer = Signer::parse(secret.as_bytes().to_vec()).unwrap_or_else(|why| panic!("{why}"));
        signer.sign(ID, TIMESTAMP, BODY)
    }

    fn refused(secret: &str) -> String {
        Signer::parse(secret.as_bytes().to_vec()).map(|_| ()).unwrap_err()
    }

    #[test]
    fn a_shared_secret_signs_as_the_example_of_standard_webhooks() {
        let signature = signed("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_private_key_signs_so_that_its_public_key_verifies() {
        // The first key pair of RFC 8032 §7.1.
        let seed = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=";
        let public = BASE64.decode("11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=").unwrap();
        let signature = signed(&format!("whsk_{seed}"));
        let bytes = BASE64.decode(signature.strip_prefix("v1a,").unwrap()).unwrap();
        let verifying = VerifyingKey::from_bytes(public.as_slice().try_into().unwrap()).unwrap();
        let text = [ID.as_bytes(), b".", TIMESTAMP.as_bytes(), b".", BODY].concat();
        verifying.verify(&text, &Signature::from_slice(&bytes).unwrap()).unwrap();

        // With its public key behind it the private key is the same.
        let pair = [BASE64.decode(seed).unwrap(), public].concat();
        assert_eq!(signed(&format!("whsk_{}", BASE64.encode(&pair))), signature);
        let unlike = [&pair[..32], &pair[..32]].concat();
        assert!(refused(&format!("whsk_{}", BASE64.encode(unlike))).contains("second half"));
    }

    #[test]
    fn what_can_not_be_a_key_is_refused_without_being_shown() {
        for secret in ["whsec_%%%secret", "whsk_%%%secret"] {
            let why = refused(secret);
            assert!(why.contains("base64") && !why.contains("secret"), "{why}");
        }
        assert!(refused(&format!("whsk_{}", BASE64.encode("short"))).contains("32 or 64 bytes"));
    }
}
