//! Tells systemd that the daemon is ready: `sd_notify(3)`, without its library.
//!
//! One datagram to the socket that `NOTIFY_SOCKET` names. The environment is the caller's to read.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends `READY=1` to the socket, the value of `NOTIFY_SOCKET`: a path, or `@` and the name of an abstract socket.
///
/// Does nothing without one: then nobody waits.
pub fn ready(socket: Option<&OsStr>) -> io::Result<()> {
    let Some(socket) = socket.filter(|socket| !socket.is_empty()) else { return Ok(()) };
    let sent = UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address(socket)?)?;
    if sent == b"READY=1".len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(socket),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "NOTIFY_SOCKET is neither a path nor an abstract name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(listener: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 64];
        let size = listener.recv(&mut buffer).unwrap();
        buffer[..size].to_vec()
    }

    #[test]
    fn systemd_hears_ready_on_a_path() {
        let path = std::env::temp_dir().join(format!("flannel-notify-{}", std::process::id()));
        let listener = UnixDatagram::bind(&path).unwrap();
        let sent = ready(Some(path.as_os_str()));
        std::fs::remove_file(&path).unwrap();
        sent.unwrap();
        assert_eq!(received(&listener), b"READY=1");
    }

    #[test]
    fn systemd_hears_ready_on_an_abstract_name() {
        let name = format!("flannel-notify-{}", std::process::id());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        ready(Some(OsStr::new(&format!("@{name}")))).unwrap();
        assert_eq!(received(&listener), b"READY=1");
    }

    #[test]
    fn nobody_listening_is_an_error_and_nobody_waiting_is_not() {
        assert!(ready(None).is_ok());
        assert!(ready(Some(OsStr::new(""))).is_ok());
        assert!(ready(Some(OsStr::new("/nowhere/notify"))).is_err());
        assert_eq!(ready(Some(OsStr::new("vsock:2:1"))).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
