//! HTTP that is off, from users and from targets: what is refused, what is passed on, and how
//! what breaks on the way is told.
//!
//! | file | subject |
//! |---|---|
//! | `refusals` | requests that cannot be served, and why |
//! | `framing` | messages that two readers could read differently |
//! | `endings` | bodies that break on the way |
//! | `fields` | header fields on their way |
//! | `access` | hosts, origins, tokens, certificates |
//! | `exchanges` | trailers, `Expect`, WebSocket |
//! | `upstream_tls` | targets over TLS |
//! | `support` | requests by hand |

mod access;
mod endings;
mod exchanges;
mod fields;
mod framing;
mod refusals;
mod support;
mod upstream_tls;
