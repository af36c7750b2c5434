//! How a ping of the lab is known wherever it goes: by the token in its data, which is the same in the request, the reply and
//! every error that quotes them, before and after address translation, and inside a tunnel.
//!
//! Surface: [`patterns`]. What is encrypted cannot be known so.

use flannel_core::addr::Family;
use flannel_kernel::nft::trace::Pattern;

/// Bytes of the header of an echo or an error (RFC 792, RFC 4443 §2.1), behind which the data is, or the packet quoted.
const ICMP: u32 = 8;

/// What stands before the inner IP header, from the outer packet's transport header: the protocol, and so many bytes.
const TUNNELS: [(u8, u32); 2] = [
    // VXLAN: UDP header, VXLAN header, Ethernet header (RFC 7348 §5).
    (17, 8 + 8 + 14),
    // The udp backend: UDP header.
    (17, 8),
];

/// The places of the token in all packets that have it.
pub fn patterns(token: u64) -> Vec<Pattern> {
    let pattern = |protocol, offset| Pattern::Behind { protocol, offset, bytes: token.to_be_bytes().to_vec() };
    Family::ALL
        .into_iter()
        .flat_map(|family| {
            let (header, protocol, in_ip) = numbers(family);
            [ICMP, ICMP + header + ICMP].into_iter().flat_map(move |offset| {
                let tunnelled = TUNNELS.into_iter().chain([(in_ip, 0)]);
                let inside = tunnelled.map(move |(outer, before)| pattern(outer, before + header + offset));
                [pattern(protocol, offset)].into_iter().chain(inside)
            })
        })
        .collect()
}

/// Bytes of the IP header without options, the number of ICMP, and that of IP in IP (RFC 2003, RFC 2473).
fn numbers(family: Family) -> (u32, u8, u8) {
    match family {
        Family::V4 => (20, 1, 4),
        Family::V6 => (40, 58, 41),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The packet has the token where one of the patterns looks for it.
    fn is_known(protocol: u8, behind_ip: &[u8]) -> bool {
        patterns(u64::from_be_bytes(*b"TOKENtok")).iter().any(|pattern| {
            let Pattern::Behind { protocol: known, offset, bytes } = pattern else { return false };
            let at = *offset as usize;
            *known == protocol && behind_ip.get(at..at + bytes.len()) == Some(bytes)
        })
    }

    #[test]
    fn a_ping_is_known_plain_quoted_and_in_every_tunnel() {
        for (header, protocol, in_ip) in Family::ALL.map(numbers) {
            let ip = vec![0; header as usize];
            let echo = [&[0; 8][..], b"TOKENtok", &[0; 40]].concat();
            let error = [&[0; 8][..], &ip, &echo].concat();
            for message in [echo, error] {
                assert!(is_known(protocol, &message));
                assert!(!is_known(6, &message));
                let packet = [&ip[..], &message].concat();
                assert!(is_known(in_ip, &packet));
                assert!(is_known(17, &[&[0; 8], &packet[..]].concat()));
                assert!(is_known(17, &[&[0; 30], &packet[..]].concat()));
            }
        }
    }
}
