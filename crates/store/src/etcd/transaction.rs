//! Transactions: operations that are done all or not at all, and only on what was seen.

use prost::bytes::Bytes;

use super::client::Client;
use super::keys::end_of;
use super::rpc::compare::{CompareResult, CompareTarget, TargetUnion};
use super::rpc::request_op::Request;
use super::rpc::{
    Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
    TxnResponse, response_op,
};
use super::trouble::{Kind, Trouble};

/// A transaction in the making.
#[derive(Debug, Clone, Default)]
pub(super) struct Transaction {
    conditions: Vec<Compare>,
    operations: Vec<RequestOp>,
    /// Operations on signatures, which it can be done without.
    signing: Vec<RequestOp>,
}

/// What became of a transaction.
#[derive(Debug)]
pub(super) struct Done {
    /// Its revision is the one that the transaction made, or that it failed at.
    pub(super) header: ResponseHeader,
    /// Whether its conditions held.
    pub(super) succeeded: bool,
    /// What its reads found.
    pub(super) found: Vec<KeyValue>,
    /// How many keys there are in the range that was counted last.
    pub(super) counted: i64,
}

impl Transaction {
    /// Only if a key was not written since it was seen.
    pub(super) fn if_unchanged(self, seen: &KeyValue) -> Self {
        self.only_if(CompareTarget::Mod, seen.key.clone(), TargetUnion::ModRevision(seen.mod_revision))
    }

    /// Only if there is no such key.
    pub(super) fn if_absent(self, key: String) -> Self {
        self.only_if(CompareTarget::Version, key.into(), TargetUnion::Version(0))
    }

    /// Only if the key was last written by this revision.
    pub(super) fn if_written_at(self, key: String, revision: i64) -> Self {
        self.only_if(CompareTarget::Mod, key.into(), TargetUnion::ModRevision(revision))
    }

    /// Only if no key that begins with `prefix`, which ends in `/`, was written after this revision.
    pub(super) fn if_none_written_after(mut self, prefix: String, revision: i64) -> Self {
        self.conditions.push(Compare {
            result: CompareResult::Less.into(),
            target: CompareTarget::Mod.into(),
            range_end: end_of(&prefix).into(),
            key: prefix.into(),
            target_union: Some(TargetUnion::ModRevision(revision + 1)),
        });
        self
    }

    fn only_if(mut self, target: CompareTarget, key: Bytes, value: TargetUnion) -> Self {
        let (result, target) = (CompareResult::Equal.into(), target.into());
        self.conditions.push(Compare { result, target, key, range_end: Bytes::new(), target_union: Some(value) });
        self
    }

    pub(super) fn range(mut self, request: RangeRequest) -> Self {
        self.operations.push(operation(Request::RequestRange(request)));
        self
    }

    /// Writes a key that its etcd lease keeps; none (0) keeps it for ever.
    pub(super) fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>, lease: i64) -> Self {
        self.operations.push(put(key, value, lease));
        self
    }

    pub(super) fn delete(mut self, key: impl Into<Bytes>) -> Self {
        self.operations.push(delete(key));
        self
    }

    /// Writes a signature.
    pub(super) fn sign(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>, lease: i64) -> Self {
        self.signing.push(put(key, value, lease));
        self
    }

    /// Deletes a signature.
    pub(super) fn unsign(mut self, key: String) -> Self {
        self.signing.push(delete(key));
        self
    }

    /// The same without signatures.
    pub(super) fn unsigned(self) -> Self {
        Self { signing: Vec::new(), ..self }
    }

    /// Has it done; without its operations on signatures where those are denied, with the trouble that said so.
    pub(super) async fn send_signed(self, client: &Client, action: &str) -> Result<(Done, Option<Trouble>), Trouble> {
        match self.clone().send(client, action).await {
            Err(trouble) if trouble.kind == Kind::Denied => {
                Ok((self.unsigned().send(client, action).await?, Some(trouble)))
            }
            done => Ok((done?, None)),
        }
    }

    /// Has it done.
    pub(super) async fn send(self, client: &Client, action: &str) -> Result<Done, Trouble> {
        let success = self.operations.into_iter().chain(self.signing).collect();
        let request = TxnRequest { compare: self.conditions, success, failure: Vec::new() };
        let TxnResponse { header, succeeded, responses } = client.txn(action, request).await?;
        let mut done = Done { header: header.unwrap_or_default(), succeeded, found: Vec::new(), counted: 0 };
        for response in responses {
            if let Some(response_op::Response::ResponseRange(range)) = response.response {
                done.counted = range.count;
                done.found.extend(range.kvs);
            }
        }
        Ok(done)
    }
}

fn operation(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn put(key: impl Into<Bytes>, value: impl Into<Bytes>, lease: i64) -> RequestOp {
    operation(Request::RequestPut(PutRequest { key: key.into(), value: value.into(), lease }))
}

fn delete(key: impl Into<Bytes>) -> RequestOp {
    operation(Request::RequestDeleteRange(DeleteRangeRequest { key: key.into() }))
}
