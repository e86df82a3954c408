//! Who may dial what: agents who dial agents, users whom grants restrict, and those who try more.
//!
//! | file | subject |
//! |---|---|
//! | `agents` | dials of agents, by default, by a grant, both ways at once |
//! | `binary` | the real binary, from config files with grants |
//! | `users` | grants for users, tokens and ingresses |
//! | `hostile` | lies, floods, and dials out of turn |
//! | `support` | what several of these use |

mod agents;
mod binary;
mod floods;
mod hostile;
mod support;
mod users;
