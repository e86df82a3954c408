//! The shape of a config file: which keys there are, and the types of their values.
//!
//! Everything is optional here and every text is as it was written; what is required, and what a
//! text must say, is `validate`'s matter. `show` writes the same shape.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A newtype over `String` whose type errors say what should have been written.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        #[serde(transparent)]
        pub(super) struct $name(pub(super) String);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reader;

                impl Visitor<'_> for Reader {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        Ok($name(text.to_owned()))
                    }
                }

                deserializer.deserialize_str(Reader)
            }
        }
    };
}

text!(
    /// A text.
    Text,
    "a text in quotes"
);
text!(
    /// A duration with its unit.
    Time,
    "a duration with its unit in quotes, as in \"30s\""
);
text!(
    /// A size with its unit.
    Size,
    "a size with its unit in quotes, as in \"4MiB\""
);

/// A whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Number(pub(super) i64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number without quotes")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Number, E> {
                Ok(Number(number))
            }
        }

        deserializer.deserialize_i64(Reader)
    }
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Switch(pub(super) bool);

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Switch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true or false without quotes")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Switch, E> {
                Ok(Switch(value))
            }
        }

        deserializer.deserialize_bool(Reader)
    }
}

/// A list of texts; a single text is a list of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Texts(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts in quotes, as in [\"a\", \"b\"]")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(Text(text)) = list.next_element()? {
                    texts.push(text);
                }
                Ok(Texts(texts))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// A table of a config file: all keys optional, unknown ones refused.
///
/// What `serde` derives would also take a list, by position; hence the readers of its own.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($key:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(remote = "Self", deny_unknown_fields, default)]
        pub(super) struct $name {
            $(
                #[serde(skip_serializing_if = "Option::is_none")]
                pub(super) $key: Option<$kind>,
            )*
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Reader;

                impl<'de> Visitor<'de> for Reader {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a table")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<$name, A::Error> {
                        $name::deserialize(MapAccessDeserializer::new(map))
                    }
                }

                deserializer.deserialize_map(Reader)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                Self::serialize(self, serializer)
            }
        }
    };
}

table!(
    /// A whole file.
    Shape {
        role: Text,
        name: Text,
        cluster: Text,
        tls: TlsShape,
        quic: QuicShape,
        proxy: ProxyShape,
        agent: AgentShape,
        service: Vec<ServiceShape>,
        ingress: Vec<IngressShape>,
        grant: Vec<GrantShape>,
        store: StoreShape,
        trust: Vec<TrustShape>,
        log: LogShape,
        metrics: MetricsShape,
        admin: AdminShape,
    }
);

table!(
    /// `[tls]`
    TlsShape {
        ca: Text,
        cert: Text,
        key: Text,
    }
);

table!(
    /// `[quic]`
    QuicShape {
        listen: Text,
        advertise: Texts,
        peer_advertise: Text,
        stream_window: Size,
        stalled_streams_max: Number,
        streams_max: Number,
        buffer_bytes_max: Size,
        keepalive: Time,
        idle_timeout: Time,
        handshake_timeout: Time,
        handshakes_per_second: Number,
        connections_max: Number,
        mtu_max: Number,
        congestion: Text,
        shards: Number,
    }
);

table!(
    /// `[proxy]`
    ProxyShape {
        group: Text,
        generation: Number,
        peers: Texts,
        join_deadline: Time,
        drain_notice: Time,
        drain_deadline: Time,
        dial_deadline: Time,
        reconnects_per_second: Number,
        agent_connection_count: Number,
        duplicate_names: Text,
        expected_agents_file: Text,
        state_dir: Text,
        allow: Texts,
    }
);

table!(
    /// `[agent]`
    AgentShape {
        proxies: Texts,
        connection_count: Number,
        allow: Texts,
        drain_deadline: Time,
    }
);

table!(
    /// `[[service]]`
    ServiceShape {
        name: Text,
        address: Text,
        protocol: Text,
    }
);

table!(
    /// `[[ingress]]`
    IngressShape {
        kind: Text,
        listen: Text,
        open: Switch,
        hosts: Texts,
        connections_max: Number,
        upstream_ca: Text,
        agent: Text,
        target: Text,
        tls: IngressTlsShape,
        auth: IngressAuthShape,
    }
);

table!(
    /// `ingress.tls`
    IngressTlsShape {
        cert: Text,
        key: Text,
    }
);

table!(
    /// `ingress.auth`
    IngressAuthShape {
        tokens_file: Text,
        client_ca: Text,
    }
);

table!(
    /// `[[grant]]`
    GrantShape {
        who: Texts,
        may: Texts,
        agents: Texts,
        targets: Texts,
    }
);

table!(
    /// `[store]`
    StoreShape {
        url: Text,
    }
);

table!(
    /// `[[trust]]`
    TrustShape {
        cluster: Text,
        ca: Text,
        allow: Texts,
    }
);

table!(
    /// `[log]`
    LogShape {
        level: Text,
        format: Text,
    }
);

table!(
    /// `[metrics]`
    MetricsShape {
        listen: Text,
    }
);

table!(
    /// `[admin]`
    AdminShape {
        listen: Text,
        auth: AdminAuthShape,
    }
);

table!(
    /// `admin.auth`
    AdminAuthShape {
        tokens_file: Text,
    }
);
