//! What was told of proxies and not taken as it was.

use std::net::SocketAddr;
use std::ops::AddAssign;

use crate::target::Target;

/// Why something that was told of a proxy was not taken as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Oddity {
    /// As many proxies are remembered as may be ([`Limits::members_max`](super::Limits::members_max)):
    /// ignored.
    Full,
    /// It is about an older start of a proxy than the one that is known: ignored.
    OlderStart,
    /// Within one start of a proxy, its generation went back: ignored, unless it says so itself.
    OlderGeneration,
    /// It is to be believed for no time at all: ignored.
    NoTtl,
    /// It is to be believed for longer than [`Limits::ttl_max`](super::Limits::ttl_max): believed for
    /// that long.
    LongTtl,
    /// Addresses at which no proxy can be: those are ignored.
    Address,
}

impl Oddity {
    /// All of them, in the order of [`Oddity::index`].
    pub const ALL: [Self; 6] = [
        Self::Full,
        Self::OlderStart,
        Self::OlderGeneration,
        Self::NoTtl,
        Self::LongTtl,
        Self::Address,
    ];

    /// Its name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::OlderStart => "older_start",
            Self::OlderGeneration => "older_generation",
            Self::NoTtl => "no_ttl",
            Self::LongTtl => "long_ttl",
            Self::Address => "address",
        }
    }

    /// Whether it comes of itself while news spread: somebody has not heard yet.
    #[must_use]
    pub const fn is_ordinary(self) -> bool {
        matches!(self, Self::OlderStart | Self::OlderGeneration)
    }
}

/// How often each has happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oddities([u64; Oddity::ALL.len()]);

impl Oddities {
    /// How often this has happened.
    #[must_use]
    pub fn count(&self, oddity: Oddity) -> u64 {
        self.0[oddity as usize]
    }

    /// Those that have happened, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (Oddity, u64)> {
        Oddity::ALL
            .into_iter()
            .map(|oddity| (oddity, self.count(oddity)))
            .filter(|(_, count)| *count > 0)
    }

    pub(super) fn note(&mut self, oddity: Oddity) {
        let count = &mut self.0[oddity as usize];
        *count = count.saturating_add(1);
    }
}

impl AddAssign for Oddities {
    fn add_assign(&mut self, other: Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }
}

/// Whether a proxy can be at an address, as far as it says itself: a host and a port, and when it is
/// an IP address, that of one host.
#[must_use]
pub fn is_dialable(address: &str) -> bool {
    match address.parse::<Target>() {
        Ok(Target::Address(address)) => is_of_one_host(address),
        Ok(Target::Host { .. }) => true,
        Ok(Target::Unix(_) | Target::Service(_)) | Err(_) => false,
    }
}

/// Whether packets to this address go to one host: it is neither unspecified nor a group's.
#[must_use]
pub fn is_of_one_host(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let is_broadcast = matches!(ip, std::net::IpAddr::V4(ip) if ip.is_broadcast());
    address.port() > 0 && !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_judged() {
        for good in [
            "10.0.0.1:7443",
            "127.0.0.1:1",
            "[2001:db8::1]:65535",
            "proxy-1.example.com:7443",
            "under_score:7443",
        ] {
            assert!(is_dialable(good), "{good}");
        }
        for bad in [
            "",
            ":",
            ":7443",
            "proxy",
            "proxy:",
            "proxy:0",
            "proxy:65536",
            "proxy:-1",
            "0.0.0.0:7443",
            "[::]:7443",
            "[::ffff:0.0.0.0]:7443",
            "224.0.0.1:7443",
            "[ff02::1]:7443",
            "255.255.255.255:7443",
            "10.0.0.1:0",
            "2001:db8::1:7443:x",
            "unix:/run/proxy",
            "service:proxy",
            "http://proxy:7443",
            "user@proxy:7443",
        ] {
            assert!(!is_dialable(bad), "{bad}");
        }
    }

    #[test]
    fn counts_add_up() {
        let mut all = Oddities::default();
        for (index, oddity) in Oddity::ALL.into_iter().enumerate() {
            assert_eq!(oddity as usize, index);
            let mut one = Oddities::default();
            one.note(oddity);
            one.note(oddity);
            all += one;
            assert_eq!(all.count(oddity), 2);
        }
        assert_eq!(all.iter().count(), Oddity::ALL.len());
    }
}
