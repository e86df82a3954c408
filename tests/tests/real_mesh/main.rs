//! Several real proxies, and the verbs that look at them.

#![expect(clippy::disallowed_methods, reason = "real programs run in real time")]

mod rolling;
mod site;
mod verbs;
