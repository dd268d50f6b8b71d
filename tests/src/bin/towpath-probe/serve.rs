//! A pod's servers: TCP and UDP, both families, each answer begins with the pod's name.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::{sleep, spawn};
use std::time::Duration;

use anyhow::{Context as _, Result};
use towpath_tests::stream::PUSH_INTERVAL;

use crate::Options;

/// Serves until the process is ended. Prints `ready` when every port is bound.
pub(crate) fn run(options: &Options) -> Result<()> {
    let greeting = format!("{}\n", options.one("name")?);
    let mut threads = Vec::new();
    for port in ports(options, "tcp")? {
        let listener = listen(port)?;
        let greeting = greeting.clone();
        threads.push(spawn(move || accept(&listener, &greeting, echo)));
    }
    for port in ports(options, "push")? {
        let listener = listen(port)?;
        let greeting = greeting.clone();
        threads.push(spawn(move || accept(&listener, &greeting, push)));
    }
    for port in ports(options, "udp")? {
        let socket = addresses(port)
            .iter()
            .find_map(|address| UdpSocket::bind(address).ok())
            .with_context(|| format!("cannot bind UDP port {port}"))?;
        let greeting = greeting.clone();
        threads.push(spawn(move || answer(&socket, &greeting)));
    }
    writeln!(std::io::stdout(), "ready")?;
    while threads.is_empty() {
        // A pod without ports still is one.
        std::thread::park();
    }
    for thread in threads {
        // Servers end with the process.
        let _ = thread.join();
    }
    Ok(())
}

fn ports(options: &Options, name: &str) -> Result<Vec<u16>> {
    options
        .all(name)
        .map(|text| text.parse().with_context(|| format!("port {text:?}")))
        .collect()
}

/// Both families on one socket; IPv4 alone where the namespace has no IPv6.
fn addresses(port: u16) -> [SocketAddr; 2] {
    [
        (Ipv6Addr::UNSPECIFIED, port).into(),
        (Ipv4Addr::UNSPECIFIED, port).into(),
    ]
}

fn listen(port: u16) -> Result<TcpListener> {
    addresses(port)
        .iter()
        .find_map(|address| TcpListener::bind(address).ok())
        .with_context(|| format!("cannot bind TCP port {port}"))
}

fn accept(listener: &TcpListener, greeting: &str, talk: fn(TcpStream) -> std::io::Result<()>) {
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else {
            continue;
        };
        let greeting = greeting.to_owned();
        spawn(move || {
            // A client that goes away ends its own conversation only.
            let _ = connection.set_nodelay(true);
            if connection.write_all(greeting.as_bytes()).is_ok() {
                let _ = talk(connection);
            }
        });
    }
}

fn echo(mut connection: TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let read = connection.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        connection.write_all(&buffer[..read])?;
    }
}

/// The server speaks unasked, as a subscription does: revocation must cut this too.
fn push(mut connection: TcpStream) -> std::io::Result<()> {
    for number in 0_u64.. {
        connection.write_all(&number.to_be_bytes())?;
        sleep(Duration::from_micros(PUSH_INTERVAL));
    }
    Ok(())
}

fn answer(socket: &UdpSocket, greeting: &str) {
    let mut buffer = [0; 2048];
    loop {
        // An ICMP error of an earlier answer shows up here; it concerns nobody else.
        let Ok((read, peer)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let mut reply = greeting.as_bytes().to_vec();
        reply.extend_from_slice(&buffer[..read]);
        let _ = socket.send_to(&reply, peer);
    }
}
