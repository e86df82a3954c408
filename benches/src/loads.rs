//! What is done to a tunnel, and what it makes of it.

pub(crate) mod bulk;
pub(crate) mod connections;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod over_link;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::service::Mode;

/// How long one connection may take until it is of use.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// A connection through the tunnel, for `mode`.
async fn open(entry: SocketAddr, mode: Mode) -> anyhow::Result<TcpStream> {
    let opened = tokio::time::timeout(CONNECT_PATIENCE, async {
        let mut socket = TcpStream::connect(entry).await?;
        socket.set_nodelay(true)?;
        socket.write_u8(mode as u8).await?;
        if mode == Mode::Echo {
            ensure!(
                socket.read_u8().await? == mode as u8,
                "another byte came back"
            );
        }
        Ok(socket)
    });
    opened.await?
}
