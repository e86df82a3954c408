//! Who a user is.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use mesh_proto::principal::Principal;

use crate::config::TokenTable;
use crate::web;

/// The header that carries a token first; `Authorization` may be the target's.
const TOKEN_HEADER: &str = "x-mesh-token";

/// A request does not show who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum AuthError {
    /// There is no token.
    #[error(
        "there is no token: send one of the ingress's tokens_file as `X-Mesh-Token: <token>` or `Authorization: Bearer <token>`"
    )]
    Missing,
    /// The token is not in the table.
    #[error(
        "the token is not one of the ingress's tokens_file: check it for what got lost in copying, and that the proxy has been started since it was added"
    )]
    Unknown,
}

/// Finds out whose token a request carries, and takes it away, so that the target never sees it.
///
/// `Authorization` is looked at when there is no `X-Mesh-Token`, and otherwise left to the target.
///
/// # Errors
/// [`AuthError`]; the headers are then as they were.
pub(super) fn by_token(
    tokens: &TokenTable,
    headers: &mut HeaderMap,
) -> Result<Principal, AuthError> {
    let token = web::presented_token(headers).ok_or(AuthError::Missing)?;
    let name = tokens.matches(token).ok_or(AuthError::Unknown)?.clone();
    if headers.remove(TOKEN_HEADER).is_none() {
        headers.remove(AUTHORIZATION);
    }
    Ok(Principal::Token(name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    const TOKEN: &str = "0123456789abcdef0123";

    #[test]
    fn a_token_is_found_and_taken_away() {
        let tokens = TokenTable::from_text(&format!("ci:{TOKEN}\n")).unwrap();
        let bearer = format!("Bearer {TOKEN}");
        let other_case = format!("bearer {TOKEN}");
        for (mesh, authorization, result, left) in [
            (None, None, Err(AuthError::Missing), None),
            (
                None,
                Some("Basic eDp5"),
                Err(AuthError::Missing),
                Some("Basic eDp5"),
            ),
            (
                None,
                Some("Bearer"),
                Err(AuthError::Missing),
                Some("Bearer"),
            ),
            (
                None,
                Some("Bearer other"),
                Err(AuthError::Unknown),
                Some("Bearer other"),
            ),
            (None, Some(bearer.as_str()), Ok(()), None),
            (None, Some(other_case.as_str()), Ok(()), None),
            (Some(TOKEN), None, Ok(()), None),
            (
                Some(TOKEN),
                Some("Bearer of-the-target"),
                Ok(()),
                Some("Bearer of-the-target"),
            ),
            (
                Some("wrong"),
                Some(bearer.as_str()),
                Err(AuthError::Unknown),
                Some(bearer.as_str()),
            ),
            (Some(""), None, Err(AuthError::Unknown), None),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(TOKEN_HEADER, mesh), ("authorization", authorization)] {
                if let Some(value) = value {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            let found = by_token(&tokens, &mut headers);
            let expected = result.map(|()| Principal::Token("ci".parse().unwrap()));
            assert_eq!(found, expected, "{mesh:?} {authorization:?}");
            assert_eq!(
                headers
                    .get(AUTHORIZATION)
                    .map(|value| value.to_str().unwrap()),
                left
            );
            assert_eq!(
                headers.contains_key(TOKEN_HEADER),
                mesh.is_some() && found.is_err()
            );
        }
    }
}
