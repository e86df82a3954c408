//! What is ignored of what proxies tell of proxies, and counted.

use std::net::SocketAddr;

use crate::target::HostName;

/// Why something that a proxy tells of proxies is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ignored {
    /// More proxies than [`Limits::members_max`](super::Limits::members_max).
    OverLimit,
    /// Another entry of the same view tells of the same proxy.
    Duplicate,
    /// It is older than what is known: an earlier start, or an earlier generation of one start. A
    /// proxy's word about its own generation is heeded all the same.
    Stale,
    /// An address that nobody can dial.
    Address,
    /// A time to live out of bounds: another one counts instead.
    Ttl,
}

impl Ignored {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::OverLimit,
        Self::Duplicate,
        Self::Stale,
        Self::Address,
        Self::Ttl,
    ];

    /// For logs and metrics, snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OverLimit => "over_limit",
            Self::Duplicate => "duplicate",
            Self::Stale => "stale",
            Self::Address => "address",
            Self::Ttl => "ttl",
        }
    }
}

/// How much of one view was ignored, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IgnoredCounts([u64; Ignored::ALL.len()]);

impl IgnoredCounts {
    /// How often for this reason.
    #[must_use]
    pub fn get(&self, why: Ignored) -> u64 {
        self.0.get(why as usize).copied().unwrap_or(0)
    }

    /// The reasons for which anything was ignored, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (Ignored, u64)> {
        Ignored::ALL
            .into_iter()
            .zip(self.0)
            .filter(|(_, count)| *count > 0)
    }

    pub(super) fn add(&mut self, why: Ignored, count: usize) {
        if let Some(slot) = self.0.get_mut(why as usize) {
            *slot = slot.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }
}

/// Whether a proxy can be there: not without a port, nor at an address of nobody or of many.
#[must_use]
pub fn can_be_dialled(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let is_broadcast = match ip {
        std::net::IpAddr::V4(ip) => ip.is_broadcast(),
        std::net::IpAddr::V6(_) => false,
    };
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast
}

/// Whether an advertised address is one: `host:port`, and the host a name or an address of one host.
pub(super) fn is_address(text: &str) -> bool {
    if let Ok(address) = text.parse() {
        return can_be_dialled(address);
    }
    text.rsplit_once(':').is_some_and(|(host, port)| {
        host.parse::<HostName>().is_ok() && port.parse().is_ok_and(|port: u16| port != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_nobody_and_of_many_are_none() {
        for good in [
            "proxy-1.example.com:7443",
            "PROXY-1:1",
            "under_score:7443",
            "10.0.0.1:7443",
            "127.0.0.1:7443",
            "169.254.1.1:7443",
            "[fd00::1]:7443",
            "[::1]:65535",
        ] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            ":",
            ":7443",
            "proxy-1",
            "proxy-1:",
            "proxy-1:0",
            "proxy-1:65536",
            "proxy-1:-1",
            "a b:7443",
            "a/b:7443",
            "127.1:7443",
            "0.0.0.0:7443",
            "[::]:7443",
            "10.0.0.1:0",
            "255.255.255.255:7443",
            "224.0.0.1:7443",
            "[ff02::1]:7443",
            "[::ffff:0.0.0.0]:7443",
            "[::ffff:224.0.0.1]:7443",
            "[::ffff:255.255.255.255]:7443",
            "fd00::1:7443",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn counts_are_by_reason() {
        let mut counts = IgnoredCounts::default();
        assert_eq!(counts.iter().count(), 0);
        for (index, why) in Ignored::ALL.into_iter().enumerate() {
            counts.add(why, index);
        }
        let listed: Vec<_> = counts
            .iter()
            .map(|(why, count)| (why.as_str(), count))
            .collect();
        assert_eq!(
            listed,
            [("duplicate", 1), ("stale", 2), ("address", 3), ("ttl", 4)]
        );
        assert_eq!(counts.get(Ignored::OverLimit), 0);
        assert_eq!(counts.get(Ignored::Ttl), 4);
    }
}
