//! When to list: daemons that begin together load their server one after the other.
//!
//! Kubernetes has nothing to draw numbers from without rights that flannel does not ask for. But a server that many ask at once is slow
//! to answer the first, smallest request of each: the longer that took, the longer, at random, is waited before all Nodes are asked
//! for. A daemon that begins alone is answered in milliseconds and the time of the way, and does not wait.

use std::time::Duration;

/// An answer that takes no longer is no sign of load: a connection and its TLS take as long.
const QUICK: Duration = Duration::from_millis(100);
/// How many times longer than the answer took the wait is at most; and its own limit.
const TIMES: u32 = 40;
const LONGEST: Duration = Duration::from_secs(10);

/// Ways to the server and back before its first answer is here: for TCP, for TLS, for the name of the Node where that is not given, for
/// the answer itself.
const WAYS: u32 = 4;
/// A way that takes longer, to the moon or through a packet that got lost, is not the way alone.
const LONGEST_WAY: Duration = Duration::from_millis(700);

/// What of the time until the first answer the server took, by the time of the way to it and back.
pub(super) fn felt(answered: Duration, way: Duration) -> Duration {
    answered.saturating_sub(way.min(LONGEST_WAY) * WAYS)
}

/// How long to wait before all Nodes are asked for, when the first answer took so long.
pub(super) fn wait(felt: Duration, random: u64) -> Duration {
    let most = (felt.saturating_sub(QUICK) * TIMES).min(LONGEST);
    most.mul_f64((random % 1024) as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_way_is_no_load() {
        let check = |answered, way, expect| {
            assert_eq!(felt(Duration::from_millis(answered), Duration::from_millis(way)).as_millis(), expect);
        };
        check(8, 1, 4);
        check(610, 150, 10);
        check(700, 0, 700);
        check(5000, 3000, 2200);
    }

    #[test]
    fn who_feels_load_waits() {
        let check = |felt, random, expect| assert_eq!(wait(Duration::from_millis(felt), random).as_millis(), expect);
        check(8, 1023, 0);
        check(100, 1023, 0);
        check(200, 512, 2000);
        check(700, 512, 5000);
        check(9000, 1023, 9990);
        check(9000, 1024, 0);
    }
}
