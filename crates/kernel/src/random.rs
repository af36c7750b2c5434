//! Random bytes from the kernel, for names and MAC addresses.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// `N` random bytes, at most 256. Waits, at boot, until the kernel has enough of them.
pub fn bytes<const N: usize>() -> Result<[u8; N], Errno> {
    const { assert!(N <= 256, "the kernel gives that many at once, uninterrupted") };
    let mut bytes = [0; N];
    loop {
        match getrandom(&mut bytes, GetRandomFlags::empty()) {
            Ok(_) => return Ok(bytes),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_two_are_alike() {
        assert_ne!(super::bytes::<16>().unwrap(), super::bytes::<16>().unwrap());
    }
}
