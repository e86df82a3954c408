//! What is done to a tunnel, by blocking sockets on threads of their own: nothing of it is counted.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_tests::Result;
use mesh_tests::probe::PATIENCE;

/// Bytes of one read or write of a bulk stream.
const BLOCK_BYTES: usize = 256 << 10;

/// Both ends ask the kernel for this much room, whatever the machine's defaults are.
const SOCKET_BUFFER_BYTES: usize = 1 << 20;

/// What is asked of the service: one byte for what, eight for how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ask {
    /// Send so many bytes.
    Down = b'D',
    /// Take so many bytes, and say so by one.
    Up = b'U',
}

/// Starts the service that tunnels lead to. It lives as long as the process.
pub(crate) fn service() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    #[expect(clippy::disallowed_methods, reason = "the load has threads of its own")]
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            // A connection that breaks is noticed at the other end.
            thread::spawn(move || serve(socket));
        }
    });
    Ok(address)
}

fn serve(mut socket: TcpStream) -> io::Result<()> {
    prepare(&socket)?;
    let mut block = vec![0x5a; BLOCK_BYTES];
    loop {
        let mut asked = [0; 9];
        socket.read_exact(&mut asked)?;
        let bytes = u64::from_be_bytes(asked[1..].try_into().expect("eight bytes"));
        if asked[0] == Ask::Down as u8 {
            send(&mut socket, &block, bytes)?;
        } else {
            take(&mut socket, &mut block, bytes)?;
            socket.write_all(&asked[..1])?;
        }
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let socket = socket2::SockRef::from(socket);
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)
}

fn send(socket: &mut TcpStream, block: &[u8], mut bytes: u64) -> io::Result<()> {
    while bytes > 0 {
        let now = usize::try_from(bytes).map_or(block.len(), |left| left.min(block.len()));
        socket.write_all(&block[..now])?;
        bytes -= now as u64;
    }
    Ok(())
}

fn take(socket: &mut TcpStream, block: &mut [u8], mut bytes: u64) -> io::Result<()> {
    while bytes > 0 {
        let now = usize::try_from(bytes).map_or(block.len(), |left| left.min(block.len()));
        match socket.read(&mut block[..now]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => bytes -= read as u64,
            // A process that was stopped and goes on: reads with a timeout are not begun again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A connection through a tunnel.
#[derive(Debug)]
pub(crate) struct Client {
    socket: TcpStream,
    block: Vec<u8>,
}

impl Client {
    /// Connects, and waits until something goes through the tunnel.
    pub(crate) fn connect(entry: SocketAddr) -> Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "it bounds a hang")]
        let began = Instant::now();
        loop {
            let tried = Self::open(entry).map_err(Into::into);
            let tried = tried.and_then(|mut client| client.up(1).map(|()| client));
            match tried {
                Ok(client) => return Ok(client),
                Err(error) if began.elapsed() > PATIENCE => {
                    return Err(error).context("nothing goes through the tunnel");
                }
                #[expect(clippy::disallowed_methods, reason = "between two tries")]
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn open(entry: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(entry)?;
        prepare(&socket)?;
        Ok(Self {
            socket,
            block: vec![0x5a; BLOCK_BYTES],
        })
    }

    fn ask(&mut self, ask: Ask, bytes: u64) -> io::Result<()> {
        let mut asked = [ask as u8; 9];
        asked[1..].copy_from_slice(&bytes.to_be_bytes());
        self.socket.write_all(&asked)
    }

    /// Has so many bytes sent from the service, to the last.
    pub(crate) fn down(&mut self, bytes: u64) -> Result {
        self.ask(Ask::Down, bytes)?;
        take(&mut self.socket, &mut self.block, bytes)
            .with_context(|| format!("{bytes} bytes down"))
    }

    /// Sends so many bytes to the service, until it has the last.
    pub(crate) fn up(&mut self, bytes: u64) -> Result {
        self.ask(Ask::Up, bytes)?;
        send(&mut self.socket, &self.block, bytes).with_context(|| format!("{bytes} bytes up"))?;
        take(&mut self.socket, &mut self.block, 1)
            .with_context(|| format!("the answer to {bytes} bytes up"))
    }
}

/// Connections one after the other, each of which moves a byte there and back and ends in order.
pub(crate) fn dials(entry: SocketAddr, count: u32) -> Result {
    for number in 0..count {
        dial(entry).with_context(|| format!("connection {number}"))?;
    }
    Ok(())
}

fn dial(entry: SocketAddr) -> Result {
    let mut socket = TcpStream::connect(entry)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut asked = [0; 10];
    asked[0] = Ask::Up as u8;
    asked[8] = 1;
    socket.write_all(&asked)?;
    let mut answer = [0];
    socket
        .read_exact(&mut answer)
        .context("the answer to a byte")?;
    socket.shutdown(Shutdown::Write)?;
    let mut more = Vec::new();
    socket.read_to_end(&mut more).context("the end")?;
    ensure!(more.is_empty(), "more than one byte");
    Ok(())
}
