//! Connection ids that their proxy recognises, also after a restart.
//!
//! A stateless reset is owed for a packet of a connection that was ours once. The id shows that:
//! it is a random half and a tag over it under a key that is kept in `state_dir`.

use aws_lc_rs::hmac;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::RngCore as _;
use rand::rngs::StdRng;

/// Bytes of the random half.
const NONCE_BYTES: usize = 5;

/// Bytes of the tag. One in 16 million foreign ids passes for ours, which costs one stateless
/// reset that nobody believes.
const TAG_BYTES: usize = 3;

/// Makes and recognises connection ids.
pub(super) struct SignedConnectionIds {
    key: hmac::Key,
    rng: StdRng,
}

impl SignedConnectionIds {
    pub(super) fn new(key: u64, rng: StdRng) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key.to_be_bytes());
        Self { key, rng }
    }

    fn tag(&self, nonce: &[u8]) -> [u8; TAG_BYTES] {
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&hmac::sign(&self.key, nonce).as_ref()[..TAG_BYTES]);
        tag
    }
}

impl ConnectionIdGenerator for SignedConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; NONCE_BYTES + TAG_BYTES];
        self.rng.fill_bytes(&mut id[..NONCE_BYTES]);
        let tag = self.tag(&id[..NONCE_BYTES]);
        id[NONCE_BYTES..].copy_from_slice(&tag);
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_at_checked(NONCE_BYTES) {
            Some((nonce, tag)) if tag == self.tag(nonce) => Ok(()),
            Some(_) | None => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        NONCE_BYTES + TAG_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn ids_are_recognised_under_their_key_alone() {
        let ids = |key, seed| SignedConnectionIds::new(key, StdRng::seed_from_u64(seed));
        let mut before = ids(7, 1);
        let (restarted, stranger) = (ids(7, 2), ids(8, 1));
        for _ in 0..100 {
            let id = before.generate_cid();
            assert!(restarted.validate(&id).is_ok());
            assert!(stranger.validate(&id).is_err());
        }
        assert!(restarted.validate(&ConnectionId::new(&[1; 4])).is_err());
        assert!(restarted.validate(&ConnectionId::new(&[])).is_err());
    }
}
