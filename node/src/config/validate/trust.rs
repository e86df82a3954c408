//! `[[trust]]`: other clusters, and what they may reach here.

use std::collections::BTreeMap;

use certs::{
    Credentials, CredentialsError, ForeignAuthority, ForeignAuthorityError, PEM_BYTES_MAX,
};
use mesh_proto::allow::AllowList;
use mesh_proto::name::{Cluster, InvalidName};

use super::checker::Checker;
use super::credentials::expiry;
use crate::config::file::TrustShape;
use crate::config::model::TrustConfig;

/// The most clusters that one proxy trusts.
const TRUSTS_MAX: usize = 4096;

/// The trusted clusters, all of which are in order.
pub(super) fn trusts(
    check: &mut Checker<'_>,
    entries: &[TrustShape],
    own: Option<&Credentials>,
) -> Option<Vec<TrustConfig>> {
    if entries.len() > TRUSTS_MAX {
        check.error(
            "trust",
            format!(
                "there are {}, over the limit of {TRUSTS_MAX}",
                entries.len()
            ),
            "remove those that are not needed",
        );
        return None;
    }
    let mut clusters: BTreeMap<Cluster, usize> = BTreeMap::new();
    let mut trusts: Vec<TrustConfig> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let key = |name: &str| format!("trust[{index}].{name}");
        let cluster = cluster(check, &key("cluster"), entry, own);
        let mut is_first = true;
        if let Some(cluster) = &cluster
            && let Some(first) = clusters.insert(cluster.clone(), index)
        {
            is_first = false;
            check.error(
                &key("cluster"),
                format!("\"{cluster}\" is the cluster of trust[{first}] too"),
                "put both into one; a file `ca` may hold several authorities of one cluster",
            );
        }
        let authority = authority(check, &key("ca"), entry, cluster.as_ref(), own);
        if let Some(authority) = &authority
            && is_first
            && let Some(other) = trusts
                .iter()
                .find(|other| other.authority.shares_key_with(authority))
        {
            check.error(
                &key("ca"),
                format!("holds a key that is in the authority of {} too", other.cluster),
                "two clusters with one authority are one: whoever has its key is both; take the right file",
            );
        }
        let allow = match &entry.allow {
            Some(texts) => super::agent::allow(check, &key("allow"), texts),
            None => Some(AllowList::default()),
        };
        if let (Some(cluster), Some(authority), Some(allow)) = (cluster, authority, allow) {
            trusts.push(TrustConfig {
                cluster,
                authority,
                allow,
            });
        }
    }
    (trusts.len() == entries.len()).then_some(trusts)
}

fn cluster(
    check: &mut Checker<'_>,
    key: &str,
    entry: &TrustShape,
    own: Option<&Credentials>,
) -> Option<Cluster> {
    let text = check.required(
        key,
        entry.cluster.as_ref(),
        "write cluster = \"a.example.com\", the name of the other cluster",
    )?;
    let cluster: Cluster = check.parse(key, text, "a cluster", |error: InvalidName| error.rule)?;
    if own.is_some_and(|own| own.identity().cluster == cluster) {
        check.error(
            key,
            format!("\"{cluster}\" is this proxy's own cluster"),
            "name another one, or remove the section: what a proxy may dial itself is proxy.allow",
        );
        return None;
    }
    Some(cluster)
}

fn authority(
    check: &mut Checker<'_>,
    key: &str,
    entry: &TrustShape,
    cluster: Option<&Cluster>,
    own: Option<&Credentials>,
) -> Option<ForeignAuthority> {
    const COPY: &str = "copy the ca.pem of that cluster, from where its `node certs init` wrote it";
    let text = check.required(
        key,
        entry.ca.as_ref(),
        "write ca = \"a-ca.pem\", the authority of the other cluster",
    )?;
    let (path, bytes) = check.read(key, text, PEM_BYTES_MAX)?;
    // Without a cluster's name there is nothing to judge the file by.
    let read = ForeignAuthority::from_pem(cluster?, &path, &bytes)
        .and_then(|authority| authority.check_time(&path, check.now).map(|()| authority));
    let authority = match read {
        Ok(authority) => authority,
        Err(error) => {
            let path = path.display();
            let what = match error {
                ForeignAuthorityError::OtherCluster { wanted, found, .. } => {
                    format!("{path} is the authority of {found}, not of {wanted}")
                }
                ForeignAuthorityError::Expired { until, .. } => {
                    format!("{path} expired at {until}")
                }
                ForeignAuthorityError::File(CredentialsError::BadAuthority { why, .. }) => {
                    format!("{path} is not a cluster's authority: {why}")
                }
                ForeignAuthorityError::File(CredentialsError::NotPem { expected, why, .. }) => {
                    format!("{path} holds no {expected}{why}")
                }
                ForeignAuthorityError::File(error) => error.to_string(),
            };
            check.error(key, what, COPY);
            return None;
        }
    };
    if own.is_some_and(|own| authority.shares_key_with_own(own)) {
        check.error(
            key,
            format!(
                "{} holds a key of this proxy's own authority",
                path.display()
            ),
            COPY,
        );
        return None;
    }
    expiry(
        check,
        key,
        authority.not_after(),
        "get the new one of that cluster in time",
    );
    Some(authority)
}
