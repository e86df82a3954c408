//! The link before one UDP address, where no namespaces can be made: for QUIC alone.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use tokio::net::UdpSocket;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::{LinkConfig, Wire};

/// UDP payload of a packet of 1500 bytes; larger ones do not pass.
const PAYLOAD_BYTES_MAX: usize = 1500 - 28;

/// Packets of one client that wait to be put on the wire.
const WAITING_MAX: usize = 4096;

/// A link that is there until it is dropped.
#[derive(Debug)]
pub(crate) struct UdpLink {
    addr: SocketAddr,
    runtime: Option<Runtime>,
}

impl UdpLink {
    /// A link on loopback that ends at `to`.
    pub(crate) fn new(config: LinkConfig, to: SocketAddr) -> anyhow::Result<Self> {
        let socket = std::net::UdpSocket::bind((to.ip(), 0))?;
        socket.set_nonblocking(true)?;
        let addr = socket.local_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        runtime.spawn(async move {
            if let Err(error) = carry(socket, config, to).await {
                eprintln!("the link has failed: {error}");
            }
        });
        Ok(Self {
            addr,
            runtime: Some(runtime),
        })
    }

    /// Where it begins.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for UdpLink {
    fn drop(&mut self) {
        // A runtime may not be dropped where another one runs.
        if let Some(runtime) = self.runtime.take() {
            let _ = thread::spawn(move || drop(runtime)).join();
        }
    }
}

async fn carry(
    socket: std::net::UdpSocket,
    config: LinkConfig,
    to: SocketAddr,
) -> std::io::Result<()> {
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    let mut clients = HashMap::new();
    let mut packet = vec![0; 1 << 16];
    loop {
        let (bytes, from) = socket.recv_from(&mut packet).await?;
        if bytes > PAYLOAD_BYTES_MAX {
            continue;
        }
        let client = match clients.get(&from) {
            Some(client) => client,
            None => {
                let onward = UdpSocket::bind((to.ip(), 0)).await?;
                onward.connect(to).await?;
                let (client, packets) = mpsc::channel(WAITING_MAX);
                let seed = 2 * clients.len() as u64;
                let wires = [Wire::new(config, seed), Wire::new(config, seed + 1)];
                tokio::spawn(carry_one(packets, wires, onward, socket.clone(), from));
                clients.entry(from).or_insert(client)
            }
        };
        // A full queue loses packets, as queues do.
        let _ = client.try_send(packet[..bytes].to_vec());
    }
}

async fn carry_one(
    mut packets: mpsc::Receiver<Vec<u8>>,
    [mut there, mut back]: [Wire; 2],
    onward: UdpSocket,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
) {
    let mut packet = vec![0; 1 << 16];
    loop {
        let next_at = there.next_at().into_iter().chain(back.next_at()).min();
        let arrival = async {
            match next_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        // A socket that takes no packet loses it, as a wire would.
        tokio::select! {
            biased;
            () = arrival => {
                let now = Instant::now();
                while let Some(packet) = there.pop(now) {
                    let _ = onward.try_send(&packet);
                }
                while let Some(packet) = back.pop(now) {
                    let _ = socket.try_send_to(&packet, client);
                }
            }
            received = packets.recv() => match received {
                Some(packet) => there.push(Instant::now(), &packet),
                None => return,
            },
            received = onward.recv(&mut packet) => {
                if let Ok(bytes) = received && bytes <= PAYLOAD_BYTES_MAX {
                    back.push(Instant::now(), &packet[..bytes]);
                }
            }
        }
    }
}
