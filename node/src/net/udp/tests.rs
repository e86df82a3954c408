//! The socket against real ones on loopback.

use std::net::Ipv4Addr;

use super::*;

const SEGMENT_BYTES: usize = 1_200;

/// How long a datagram may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// A socket on loopback, and its address.
fn receiver() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.set_nonblocking(true).expect("a socket option");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

fn sender() -> Arc<QuicSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    Arc::new(QuicSocket::new(socket).expect("a socket of a runtime"))
}

/// `segments` datagrams, numbered from `first` in their first byte.
fn datagrams(first: u8, segments: u8) -> Vec<u8> {
    (first..first + segments)
        .flat_map(|number| [number; SEGMENT_BYTES])
        .collect()
}

fn transmit(destination: SocketAddr, contents: &[u8]) -> Transmit<'_> {
    Transmit {
        destination,
        ecn: None,
        contents,
        segment_size: Some(SEGMENT_BYTES),
        src_ip: None,
    }
}

/// The numbers and lengths of the next datagrams.
async fn receive(socket: UdpSocket, count: usize) -> Vec<(u8, usize)> {
    let socket = tokio::net::UdpSocket::from_std(socket).expect("a socket of a runtime");
    let mut buffer = [0; 2_000];
    let mut received = Vec::new();
    while received.len() < count {
        let next = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer));
        let length = next.await.expect("in time").expect("a datagram");
        received.push((buffer[0], length));
    }
    received
}

fn whole(numbers: std::ops::Range<u8>) -> Vec<(u8, usize)> {
    numbers.map(|number| (number, SEGMENT_BYTES)).collect()
}

#[tokio::test]
async fn what_is_held_back_is_sent_once_no_more_comes() {
    let ((socket, address), sender) = (receiver(), sender());
    for first in [0, 10, 20] {
        let contents = datagrams(first, 10);
        sender
            .try_send(&transmit(address, &contents))
            .expect("room");
    }
    assert_eq!(receive(socket, 30).await, whole(0..30));
}

#[tokio::test]
async fn order_is_kept_across_bursts_and_single_datagrams() {
    let ((socket, address), sender) = (receiver(), sender());
    // More than one call takes, then a short one, then one alone that is longer than those before.
    for first in [0, 10, 20, 30, 40, 50] {
        let contents = datagrams(first, 10);
        sender
            .try_send(&transmit(address, &contents))
            .expect("room");
    }
    let short = [60; 7];
    let long = [61; SEGMENT_BYTES + 1];
    for contents in [&short[..], &long] {
        let single = Transmit {
            segment_size: None,
            ..transmit(address, contents)
        };
        sender.try_send(&single).expect("room");
    }
    let mut expected = whole(0..60);
    expected.extend([(60, 7), (61, SEGMENT_BYTES + 1)]);
    assert_eq!(receive(socket, 62).await, expected);
}

#[tokio::test]
async fn receivers_do_not_wait_for_each_other() {
    let sender = sender();
    let ((a, to_a), (b, to_b)) = (receiver(), receiver());
    let contents = datagrams(0, 10);
    sender.try_send(&transmit(to_a, &contents)).expect("room");
    sender.try_send(&transmit(to_b, &contents)).expect("room");
    sender.try_send(&transmit(to_a, &contents)).expect("room");
    let twice = [whole(0..10), whole(0..10)].concat();
    assert_eq!(receive(b, 10).await, whole(0..10));
    assert_eq!(receive(a, 20).await, twice);
}

#[tokio::test]
async fn a_socket_that_is_dropped_sends_what_it_holds() {
    let ((socket, address), sender) = (receiver(), sender());
    let contents = datagrams(0, 10);
    sender
        .try_send(&transmit(address, &contents))
        .expect("room");
    drop(sender);
    assert_eq!(receive(socket, 10).await, whole(0..10));
}

#[tokio::test]
async fn a_full_kernel_is_waited_for() {
    // A Unix datagram socket would do; for UDP on loopback, only a small buffer of the sender fills,
    // and only for as long as the kernel works: so whoever waits finds room.
    let ((socket, address), sender) = (receiver(), sender());
    sender.shared.is_blocked.store(true, Ordering::Relaxed);
    let mut room = sender.clone().create_io_poller();
    poll_fn(|cx| room.as_mut().poll_writable(cx))
        .await
        .expect("a registered socket");
    assert!(!sender.shared.is_blocked.load(Ordering::Relaxed));
    // Without a wait: nothing is registered.
    let ready = std::future::poll_fn(|cx| Poll::Ready(room.as_mut().poll_writable(cx))).await;
    assert!(ready.is_ready());
    let contents = datagrams(0, 1);
    sender
        .try_send(&transmit(address, &contents))
        .expect("room");
    assert_eq!(receive(socket, 1).await, whole(0..1));
}

#[tokio::test]
async fn without_descriptors_it_is_tried_again() {
    let (socket, address) = receiver();
    let mut sender = sender();
    let shared = Arc::get_mut(&mut sender).and_then(|sender| Arc::get_mut(&mut sender.shared));
    shared.expect("nobody else has it").duplicate = |_| Err(io::ErrorKind::Other.into());
    sender.shared.is_blocked.store(true, Ordering::Relaxed);
    let mut room = sender.clone().create_io_poller();
    let waited = poll_fn(|cx| room.as_mut().poll_writable(cx)).await;
    waited.expect("an error would end the connection");
    let contents = datagrams(0, 1);
    sender
        .try_send(&transmit(address, &contents))
        .expect("room");
    assert_eq!(receive(socket, 1).await, whole(0..1));
}

#[tokio::test]
async fn all_who_wait_for_room_share_a_descriptor() {
    let sender = sender();
    let (one, other) = (sender.shared.writable(), sender.shared.writable());
    assert!(Arc::ptr_eq(&one.expect("one"), &other.expect("another")));
    assert_eq!(sender.shared.waiting().strong_count(), 0, "nobody waits");
}

#[tokio::test]
async fn what_arrives_after_the_queue_was_emptied_is_told() {
    let to = sender();
    let address = to.local_addr().expect("bound");
    let from = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let mut buffers: Vec<Vec<u8>> = vec![vec![0; 65_536]; 4];
    for number in 0..5_u8 {
        from.send_to(&[number; 9], address).expect("sent");
        let mut bufs: Vec<_> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        let mut meta = [RecvMeta::default(); 4];
        let messages = poll_fn(|cx| to.poll_recv(cx, &mut bufs, &mut meta))
            .await
            .expect("received");
        assert_eq!((messages, meta[0].len), (1, 9));
        assert_eq!(buffers[0][0], number);
    }
}
