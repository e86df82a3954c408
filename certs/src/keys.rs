//! Which kinds of private key are made, and making them.

use aws_lc_rs::signature::Ed25519KeyPair;
use rcgen::KeyPair;
use rustls_pki_types::PrivatePkcs8KeyDer;

/// The kind of a new private key.
///
/// Ed25519 is the default: it is the cheapest to sign with, signs deterministically, and its
/// signatures have one length, so that the handshakes of a simulated fleet are the same bytes long
/// each time. Keys of other kinds that an operator brings (RSA, P-384) are used as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyKind {
    /// Ed25519 (RFC 8032).
    #[default]
    Ed25519,
    /// ECDSA on P-256 with SHA-256, for tools that lack Ed25519.
    EcdsaP256,
}

impl KeyKind {
    pub(crate) fn generate(self) -> Result<KeyPair, rcgen::Error> {
        match self {
            Self::Ed25519 => {
                // rcgen would write the key's file as PKCS #8 version 2, which OpenSSL 3.0 cannot
                // read; version 1 (RFC 5208) is read by everyone.
                let failed = |_| rcgen::Error::RingUnspecified;
                let key = Ed25519KeyPair::generate()
                    .map_err(failed)?
                    .to_pkcs8v1()
                    .map_err(failed)?;
                let der = PrivatePkcs8KeyDer::from(key.as_ref());
                KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)
            }
            Self::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn keys_are_written_as_pkcs8_version_1() {
        for kind in [KeyKind::Ed25519, KeyKind::EcdsaP256] {
            let der = kind.generate().unwrap().serialize_der();
            // SEQUENCE (length below 256), INTEGER version 0.
            let version = if der[1] == 0x81 {
                &der[3..6]
            } else {
                &der[2..5]
            };
            assert_eq!(version, [0x02, 0x01, 0x00], "{kind:?}");
        }
    }

    #[test]
    fn keys_differ_and_are_equally_long() {
        let (one, two) = (
            KeyKind::Ed25519.generate().unwrap(),
            KeyKind::Ed25519.generate().unwrap(),
        );
        assert_ne!(one.serialize_der(), two.serialize_der());
        assert_eq!(one.serialize_der().len(), two.serialize_der().len());
    }
}
