//! Giving a record up.

use flannel_core::lease::LeaseKey;

use super::super::transaction::Transaction;
use super::{ATTEMPTS, Listed, Operator, OperatorError};
use crate::host::Host;

impl Operator {
    /// Deletes a record, by name, and answers with it. The lease of a host other than `here`, which may be alive, is deleted
    /// only if `force`.
    pub async fn release(&self, name: &LeaseKey, here: &Host, force: bool) -> Result<Listed, OperatorError> {
        for _ in 0..ATTEMPTS {
            let found = self.look().await?.records.into_iter().find(|listed| listed.record.key == *name);
            let absent = || OperatorError::NoRecord { name: name.clone(), prefix: self.keys.subnets() };
            let listed = self.timed(found.ok_or_else(absent)?).await?;
            let is_own = listed.holder.as_ref().is_some_and(|host| here.is(host));
            if listed.keeping.left().is_some() && !is_own && !force {
                let (owner, keeping) = (listed.owner(), listed.keeping.to_string());
                return Err(OperatorError::Alive { name: name.clone(), owner, keeping });
            }
            let deletion = Transaction::default().if_unchanged(&listed.kv).delete(listed.kv.key.clone());
            let deletion = deletion.unsign(self.keys.holder(name));
            let (done, _) = deletion.send_signed(&self.client, &format!("delete {}", listed.etcd_key())).await?;
            if done.succeeded {
                return Ok(listed);
            }
        }
        Err(OperatorError::Overtaken)
    }
}
