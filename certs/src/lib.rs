//! The mesh's certificates: who a peer is, who vouches for it, and the TLS built on both.
//!
//! - [`Authority`] is a cluster's certificate authority: it creates, issues and signs.
//! - [`Csr`] asks an authority for a certificate while the private key stays where it was made.
//! - [`Identity`] is what a certificate says: `spiffe://<cluster>/<kind>/<name>`, its one URI SAN.
//! - [`Credentials`] are what a node has of its own: chain, key, and its cluster's authority.
//! - [`proxy_server_config`] and [`client_config`] are the only TLS configurations of the mesh.
//! - [`inspect_pem`] tells what a certificate file holds.
//!
//! What holds for every connection: TLS 1.3 alone, certificates on both sides, no resumption, no
//! tickets, no early data; a certificate is judged by the authority of the cluster that it names
//! and by no other.
//!
//! Nothing here reads the clock where a caller cannot hand one in, except where the name says so:
//! [`Validity::days`], [`Credentials::load`] and [`system_time`].

mod authority;
mod credentials;
mod csr;
mod files;
mod foreign;
mod identity;
mod inspect;
mod keys;
mod leaf;
mod tls;
mod validity;
mod verifier;

pub use authority::{
    AUTHORITY_CERT_FILE, AUTHORITY_KEY_FILE, Authority, AuthorityError, Issued, Request, Signed,
};
pub use credentials::{Credentials, CredentialsError};
pub use csr::{Csr, CsrError};
pub use files::{FileError, PEM_BYTES_MAX, read_pem};
pub use foreign::{ForeignAuthority, ForeignAuthorityError, TrustedClusters};
pub use identity::{Identity, IdentityError, Kind, UnknownKind};
pub use inspect::{InspectError, Inspection, Subject, inspect_file, inspect_pem};
pub use keys::KeyKind;
pub use leaf::AltNameError;
pub use tls::{
    TlsError, client_config, client_verifier, foreign_client_config, provider, proxy_dns_name,
    proxy_server_config, proxy_server_config_trusting, proxy_server_name, system_time,
};
pub use validity::{
    AUTHORITY_DAYS, BACKDATED_SECS, DAYS_MAX, InvalidValidity, LEAF_DAYS, Validity, format_utc,
};
