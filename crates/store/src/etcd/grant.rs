//! etcd's leases, called grants here so that nobody takes them for ours: what keeps a record alive for a day, renewed in time.
//!
//! A grant is renewed, not exchanged: the record stays as it is and nobody hears of it. Nothing is revoked when the daemon
//! ends, so that its record outlives a restart.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::hold::{Etcd, Standing, State};
use super::rpc::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest};
use super::trouble::{Kind, Trouble};
use crate::acquire::jittered;

/// How long after a failure to renew it is tried again (compat §3).
const AGAIN: Duration = Duration::from_mins(1);

/// A lease of etcd that is alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) id: i64,
    /// How long it lived when it was granted or renewed.
    ttl: Duration,
    at: Instant,
}

impl Grant {
    fn new(id: i64, ttl: i64, at: Instant) -> Option<Self> {
        let ttl = u64::try_from(ttl).ok().filter(|ttl| *ttl > 0)?;
        Some(Self { id, ttl: Duration::from_secs(ttl), at })
    }

    /// When to renew it: a margin before its end, but not at once, if the server grants less than that.
    pub(super) fn due(&self, margin: Duration) -> Instant {
        self.at + self.ttl.saturating_sub(margin).max(self.ttl / 2)
    }
}

impl Etcd {
    /// Asks for a new one.
    pub(super) async fn grant(&self, ttl: Duration) -> Result<Grant, Trouble> {
        let (at, ttl) = (Instant::now(), i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
        let answer = self.client.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?;
        let refused = || Trouble::new(Kind::Refused, format!("etcd grants no lease: {}", answer.error), None);
        Grant::new(answer.id, answer.ttl, at).ok_or_else(refused)
    }

    /// Renews one; none if it is gone.
    pub(super) async fn renewed(&self, id: i64) -> Result<Option<Grant>, Trouble> {
        let at = Instant::now();
        let answer = self.client.lease_keep_alive(id).await?;
        Ok(Grant::new(id, answer.ttl, at))
    }

    /// Gives one back that nothing is attached to. If that fails it ends by itself.
    pub(super) async fn give_back(&self, grant: &Grant) {
        if let Err(trouble) = self.client.lease_revoke(LeaseRevokeRequest { id: grant.id }).await {
            tracing::debug!("{trouble}");
        }
    }

    /// Renews what keeps our record, whenever it is time.
    pub(super) async fn keep_alive(&self) {
        let mut standing = self.follow();
        loop {
            let due = standing.borrow_and_update().as_ref().and_then(|standing| standing.due);
            let changed = match due {
                None => standing.changed().await,
                Some(due) => tokio::select! {
                    changed = standing.changed() => changed,
                    () = sleep_until(due) => {
                        self.renew().await;
                        Ok(())
                    }
                },
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn renew(&self) {
        let mut state = self.state().await;
        let Some(held) = state.holding.as_ref().map(|holding| holding.held.clone()) else { return };
        let due = match self.try_renew(&mut state).await {
            Ok(Some(due)) => due,
            Ok(None) => {
                drop(state);
                return self.hold_again().await;
            }
            Err(trouble) => {
                tracing::warn!("lease {} is not renewed yet: {trouble}", held.key);
                Instant::now() + jittered(AGAIN)
            }
        };
        self.stand(Some(Standing { held, due: Some(due) }));
    }

    /// Renews if the record is still as we wrote it, and says when to do so again.
    async fn try_renew(&self, state: &mut State) -> Result<Option<Instant>, Trouble> {
        let Some(holding) = &mut state.holding else { return Ok(None) };
        let Some(grant) = &holding.grant else { return Ok(None) };
        let key = self.keys.record(&holding.held.key);
        let request = RangeRequest { key: key.clone().into(), ..RangeRequest::default() };
        let found = self.client.range(&format!("read {key}"), request).await?.kvs.pop();
        if found.is_none_or(|kv| kv.mod_revision != holding.written || kv.lease != grant.id) {
            return Ok(None);
        }
        let renewed = self.renewed(grant.id).await?;
        let due = renewed.as_ref().map(|grant| grant.due(self.options.renew_margin));
        holding.grant = renewed.or_else(|| holding.grant.take());
        Ok(due)
    }

    /// Looks after a record that is not as we wrote it. What cannot be mended here shows in the watch, and so to the daemon.
    async fn hold_again(&self) {
        let Some((config, claim)) = self.state().await.asked.clone() else { return };
        if let Err(error) = self.hold(&config, &claim).await {
            tracing::warn!("{error}");
            let Some(held) = self.standing() else { return };
            self.stand(Some(Standing { held, due: Some(Instant::now() + jittered(AGAIN)) }));
        }
    }
}
