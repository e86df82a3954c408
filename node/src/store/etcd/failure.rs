//! What an error of etcd means.

use std::error::Error as _;
use std::io;

use etcd_client::Error;

use crate::store::StoreError;

/// What to do after an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The same at another member.
    Elsewhere {
        /// What is wrong with this one.
        what: String,
        /// The change may have been made.
        maybe_done: bool,
        /// It answers, but cannot at the moment: the cluster has no leader, or is busy.
        answers: bool,
    },
    /// No member will say anything else.
    Final(StoreError),
}

impl Failure {
    pub(super) fn timed_out() -> Self {
        Self::Elsewhere {
            what: "it does not answer".to_owned(),
            maybe_done: true,
            answers: false,
        }
    }
}

/// Codes of gRPC.
const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const UNAUTHENTICATED: i32 = 16;

/// How etcd's own messages begin; others are of the transport.
const OF_ETCD: &str = "etcdserver: ";

pub(super) fn classify(error: &Error) -> Failure {
    let Error::GRpcStatus(status) = error else {
        return Failure::Elsewhere {
            what: error.to_string(),
            maybe_done: !was_not_sent(error.source()),
            answers: false,
        };
    };
    let message = status.message();
    let denied = || {
        Failure::Final(StoreError::Denied {
            what: message.to_owned(),
        })
    };
    let elsewhere = |maybe_done, answers| {
        // The cause, such as a refused connection, stands at the end of the chain.
        let mut what = message.to_owned();
        let mut source = status.source();
        while let Some(error) = source {
            what = error.to_string();
            source = error.source();
        }
        Failure::Elsewhere {
            what,
            maybe_done,
            answers,
        }
    };
    match i32::from(status.code()) {
        OUT_OF_RANGE if message.contains("compacted") => Failure::Final(StoreError::Compacted),
        // A member that lags behind, or a backup that was restored.
        OUT_OF_RANGE if message.contains("future revision") => {
            Failure::Final(StoreError::Compacted)
        }
        INVALID_ARGUMENT if message.contains("request is too large") => denied(),
        // The rights were changed meanwhile: to be asked anew, with a new token.
        INVALID_ARGUMENT if message.contains("revision of auth store") => elsewhere(false, true),
        UNAUTHENTICATED if message.contains("invalid auth token") => elsewhere(false, true),
        INVALID_ARGUMENT | PERMISSION_DENIED | FAILED_PRECONDITION | UNAUTHENTICATED => denied(),
        // A lease that ended before it was used.
        NOT_FOUND if message.contains("lease not found") => {
            Failure::Final(StoreError::unreachable("the time to live was over at once"))
        }
        RESOURCE_EXHAUSTED if message.contains("database space exceeded") => {
            Failure::Final(StoreError::unreachable(message))
        }
        _ if message.contains("no leader") => elsewhere(false, true),
        _ if message.starts_with(OF_ETCD) => elsewhere(true, true),
        _ => elsewhere(!was_not_sent(status.source()), false),
    }
}

/// Whether there was no connection that it could have been sent on.
fn was_not_sent(mut source: Option<&(dyn std::error::Error + 'static)>) -> bool {
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::AddrNotAvailable
            );
        }
        source = error.source();
    }
    false
}
