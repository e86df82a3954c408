//! `[[grant]]`

use std::collections::BTreeSet;
use std::str::FromStr;

use mesh_proto::grant::{Grant, InvalidPattern, May, WhoPattern};

use super::checker::Checker;
use crate::config::file::{GrantShape, Texts};

/// The most grants: each dial is compared with all of them.
const GRANTS_MAX: usize = 1024;

/// The most patterns in one list of a grant.
const PATTERNS_MAX: usize = 256;

/// The grants, all of which are in order.
pub(super) fn grants(check: &mut Checker<'_>, entries: &[GrantShape]) -> Option<Vec<Grant>> {
    if entries.len() > GRANTS_MAX {
        check.error(
            "grant",
            format!(
                "there are {}, over the limit of {GRANTS_MAX}",
                entries.len()
            ),
            "put principals with the same rights into one, and use patterns",
        );
        return None;
    }
    let grants: Vec<Option<Grant>> = entries
        .iter()
        .enumerate()
        .map(|(index, entry)| grant(check, index, entry))
        .collect();
    grants.into_iter().collect()
}

fn grant(check: &mut Checker<'_>, index: usize, entry: &GrantShape) -> Option<Grant> {
    let key = |name: &str| format!("grant[{index}].{name}");
    let who = match &entry.who {
        Some(texts) => patterns(
            check,
            &key("who"),
            texts,
            "a principal or a pattern of some",
            "write who = [\"user:alice\"]",
        ),
        None => {
            check.missing(&key("who"), "write who = [\"user:alice\"]");
            None
        }
    };
    let may = may(check, &key("may"), entry.may.as_ref());
    if let (Some(who), Some(may)) = (&who, &may) {
        check_used(check, &key("who"), who, may);
    }
    let agents = narrowed(
        check,
        &key("agents"),
        entry.agents.as_ref(),
        may.as_ref(),
        "an agent or a pattern of some",
        "write agents = [\"db-*\"], or leave it out for every agent",
    );
    let targets = narrowed(
        check,
        &key("targets"),
        entry.targets.as_ref(),
        may.as_ref(),
        "a rule for targets",
        "write targets = [\"service:web\"], or leave it out for every target",
    );
    Some(Grant {
        who: who?,
        may: may?,
        agents: agents?,
        targets: targets?,
    })
}

/// All rights but that to dial are for users alone: nobody else can ask for what they allow.
fn check_used(check: &mut Checker<'_>, key: &str, who: &[WhoPattern], may: &BTreeSet<May>) {
    let rights = may.iter().filter(|may| **may != May::Dial);
    let rights: Vec<String> = rights.map(|may| format!("\"{may}\"")).collect();
    let has_user = who.iter().any(|who| who.kind() == "user");
    if !rights.is_empty() && !has_user {
        check.warn(
            key,
            &format!(
                "only users can ask for what {} allows: it has no effect for anybody here",
                rights.join(", ")
            ),
        );
    }
}

fn may(check: &mut Checker<'_>, key: &str, texts: Option<&Texts>) -> Option<BTreeSet<May>> {
    const REMEDY: &str = "write may = [\"dial\"], or others of read, dial, tunnel, admin";
    let Some(Texts(texts)) = texts else {
        check.missing(key, REMEDY);
        return None;
    };
    if texts.is_empty() {
        check.error(key, "is empty", REMEDY);
        return None;
    }
    let words = May::ALL.map(|may| (may.as_str(), may));
    let mut rights = BTreeSet::new();
    let mut all_good = true;
    for (index, text) in texts.iter().enumerate() {
        let key = format!("{key}[{index}]");
        match check.word(&key, text, &words) {
            Some(may) => {
                rights.insert(may);
            }
            None => all_good = false,
        }
    }
    all_good.then_some(rights)
}

/// A list that narrows dials, and may be left out: `Some(None)`.
fn narrowed<T: FromStr<Err = InvalidPattern>>(
    check: &mut Checker<'_>,
    key: &str,
    texts: Option<&Texts>,
    may: Option<&BTreeSet<May>>,
    what: &str,
    remedy: &str,
) -> Option<Option<Vec<T>>> {
    let Some(texts) = texts else {
        return Some(None);
    };
    let patterns = patterns(check, key, texts, what, remedy);
    if let Some(may) = may
        && !may.contains(&May::Dial)
    {
        check.error(
            key,
            "narrows what may be dialled, and this grant does not give \"dial\"",
            "remove it, or add \"dial\" to may",
        );
        return None;
    }
    patterns.map(Some)
}

fn patterns<T: FromStr<Err = InvalidPattern>>(
    check: &mut Checker<'_>,
    key: &str,
    Texts(texts): &Texts,
    what: &str,
    remedy: &str,
) -> Option<Vec<T>> {
    // An empty list would match nothing, where one that is left out matches everything.
    if texts.is_empty() {
        check.error(key, "is empty", remedy);
        return None;
    }
    if texts.len() > PATTERNS_MAX {
        check.error(
            key,
            format!(
                "has {} entries, over the limit of {PATTERNS_MAX}",
                texts.len()
            ),
            "use patterns with a star, networks and port ranges, or several grants",
        );
        return None;
    }
    let patterns: Vec<Option<T>> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            check.parse(
                &format!("{key}[{index}]"),
                text,
                what,
                |error: InvalidPattern| error.rule,
            )
        })
        .collect();
    patterns.into_iter().collect()
}
