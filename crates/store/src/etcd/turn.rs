//! Whose turn it is to list: daemons that begin together load their server one after the other.
//!
//! A daemon with many records to list draws a number: by writing the key `PREFIX/starts`, which ends ten seconds after the last one
//! wrote it, and whose version says how many have. The first few do not wait, and so a daemon that begins alone never does.
//! Where that key may not be written nobody waits.

use std::time::Duration;

use tokio::time::sleep;

use super::hold::Etcd;
use super::rpc::RangeRequest;
use super::transaction::Transaction;
use super::trouble::Trouble;

/// So many records are no load, whoever lists them.
const FEW: usize = 64;
/// Daemons that list at once, and how long after another each of the others does.
const AT_ONCE: u64 = 8;
const STEP: Duration = Duration::from_millis(30);
/// The longest wait. Who would have to wait longer begins again at the front.
const LONGEST: Duration = Duration::from_secs(30);
/// How long numbers are counted on.
const TOGETHER: Duration = Duration::from_secs(10);

impl Etcd {
    /// Waits until it is our turn to list so many records.
    pub(super) async fn await_turn(&self, records: usize) {
        if records <= FEW {
            return;
        }
        match self.draw().await {
            Ok(number) => sleep(wait(number)).await,
            Err(trouble) => tracing::debug!("no turn is waited for: {trouble}"),
        }
    }

    /// Draws a number, from 1.
    async fn draw(&self) -> Result<u64, Trouble> {
        let (key, grant) = (self.keys.starts(), self.grant(TOGETHER).await?);
        let action = format!("write {key}");
        let read = RangeRequest { key: key.clone().into(), ..RangeRequest::default() };
        let done = Transaction::default().put(key, String::new(), grant.id).range(read).send(&self.client, &action);
        Ok(done.await?.found.first().map_or(1, |kv| kv.version.unsigned_abs()))
    }
}

fn wait(number: u64) -> Duration {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis((number.saturating_sub(AT_ONCE) * millis(STEP)) % millis(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_wait_for_each_other_and_few_do_not() {
        let waits = [0, 1, 8, 9, 200, 1007, 1008].map(|number| wait(number).as_millis());
        assert_eq!(waits, [0, 0, 0, 30, 5760, 29_970, 0]);
    }
}
