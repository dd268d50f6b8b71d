//! Carries connections from a listening socket, which somebody else made elsewhere, to a server that is seen from here.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};

use super::Options;

/// The socket comes on standard input: it may be of another namespace than this process.
pub(crate) fn run(options: &Options) -> Result<()> {
    let server: SocketAddr = options.one("to")?.parse()?;
    let listener = TcpListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    for connection in listener.incoming() {
        let connection = connection.context("cannot accept")?;
        std::thread::Builder::new()
            .name("forward".to_owned())
            // A connection that ends badly has told its client.
            .spawn(move || drop(carry(&connection, server)))?;
    }
    Ok(())
}

fn carry(client: &TcpStream, server: SocketAddr) -> Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client);
    });
    Ok(())
}

/// Until the end of one direction, which the other side is told.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
