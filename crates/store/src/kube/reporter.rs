//! Tells the cluster how our node stands: the Node's condition, and Events.
//!
//! It goes on for as long as the daemon runs, beside everything else, and keeps nothing from going on. The condition is looked at
//! before it is written, and again when somebody wrote the Node since; Events are told where we may, and else not.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Kube;
use super::ask::{Ask, EVENTS, NODES, Verb};
use super::client::Form;
use super::condition::{Condition, Said};
use super::event::{Event, Ledger, NAMESPACE};
use super::own::{Own, OwnNode};
use super::trouble::{Kind, Trouble};
use super::wire::Uid;
use crate::Standing;

/// The pause after a failure, which doubles, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Our Node is looked at no more often, however often others write it.
const CHECK: Duration = Duration::from_secs(10);

/// So long no Event is tried after we were told that we have no right to it.
const BARRED: Duration = Duration::from_mins(10);

/// What tells the cluster.
pub(super) struct Reporter {
    kube: Arc<Kube>,
    ledger: Ledger,
    post: Post,
}

/// What is known of the condition.
#[derive(Debug)]
struct Post {
    /// Of which Node.
    uid: Option<Uid>,
    /// What the Node says; none before it was looked at.
    said: Option<Said>,
    checked: Option<Instant>,
    /// Failures in a row, and until when nothing is tried because of the last.
    tries: u32,
    rests: Option<Instant>,
    /// What was logged of them.
    failure: Option<String>,
}

impl Post {
    fn new(uid: Option<Uid>) -> Self {
        Self { uid, said: None, checked: None, tries: 0, rests: None, failure: None }
    }

    /// When the Node is to be looked at or written; none if it says what it should and nobody wrote it since.
    fn due(&self, own: &OwnNode, wanted: &Condition, now: Instant) -> Option<Instant> {
        let at = match &self.said {
            None => now,
            Some(said) if said.condition.as_ref() != Some(wanted) => now,
            Some(said) if said.version < own.version => self.checked.map_or(now, |checked| now.max(checked + CHECK)),
            Some(_) => return None,
        };
        Some(self.rests.map_or(at, |rests| at.max(rests)))
    }

    fn says(&self, wanted: &Condition) -> bool {
        self.said.as_ref().is_some_and(|said| said.condition.as_ref() == Some(wanted))
    }

    fn fail(&mut self, now: Instant) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.tries.min(16)).min(LONGEST_PAUSE);
        (self.tries, self.rests) = (self.tries + 1, Some(now + pause));
    }

    fn succeed(&mut self) {
        (self.tries, self.rests, self.failure) = (0, None, None);
    }
}

impl Reporter {
    pub(super) fn new(kube: Arc<Kube>) -> Self {
        Self { kube, ledger: Ledger::new(Instant::now()), post: Post::new(None) }
    }

    /// Tells whatever changes; ends only with the store.
    pub(super) async fn run(mut self) {
        let mut standings = self.kube.standing.subscribe();
        let mut owns = self.kube.sight.own();
        loop {
            let standing = standings.borrow_and_update().clone();
            self.ledger.take(&standing, Instant::now());
            let own = match &*owns.borrow_and_update() {
                Own::Here(own) => Some(own.clone()),
                _ => None,
            };
            let due = match &own {
                Some(own) => self.tell(own, &standing).await,
                None => None,
            };
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = standings.changed() => if changed.is_err() { return },
                changed = owns.changed() => if changed.is_err() { return },
                () = sleep => {}
            }
        }
    }

    /// Tells what is to be told now, and answers when to come again.
    async fn tell(&mut self, own: &OwnNode, standing: &Standing) -> Option<Instant> {
        let condition = self.keep_condition(own, standing).await;
        if let Some(event) = self.ledger.next(Instant::now()) {
            self.tell_event(own, &event).await;
        }
        let now = Instant::now();
        condition.into_iter().chain(self.ledger.due(now)).min()
    }

    /// Makes the condition say what it should, and answers when to look again.
    async fn keep_condition(&mut self, own: &OwnNode, standing: &Standing) -> Option<Instant> {
        if self.post.uid != Some(own.uid) {
            self.post = Post::new(Some(own.uid));
        }
        let now = Instant::now();
        let lasting = standing.problems.iter().filter(|problem| self.ledger.lasts(problem, now));
        // What blocks pods only since a moment is no reason to say anything yet.
        let unsettled = standing.blocking().any(|problem| !self.ledger.lasts(problem, now));
        let wanted =
            Condition::wanted(standing.ready && !unsettled, lasting).filter(|_| self.kube.options.sets_condition)?;
        if self.post.due(own, &wanted, now)? > now {
            return self.post.due(own, &wanted, now);
        }
        match self.bring_to(own, &wanted).await {
            Ok(()) if self.post.says(&wanted) => self.post.succeed(),
            // Something in between has made another of it.
            Ok(()) => self.post.fail(Instant::now()),
            Err(trouble) => {
                self.complain(own, &trouble);
                self.post.fail(Instant::now());
            }
        }
        self.post.due(own, &wanted, Instant::now())
    }

    /// Looks at the Node unless it is known what it says, and writes it if that is something else.
    async fn bring_to(&mut self, own: &OwnNode, wanted: &Condition) -> Result<(), Trouble> {
        let ask = Ask::of(Verb::Get, NODES).named(own.name.as_str());
        let known = self.post.said.as_ref().filter(|said| said.version >= own.version);
        if known.is_none() {
            let said = read(&ask, &self.kube.client.fetch(&ask, Form::Json).await?)?;
            self.post.checked = Some(Instant::now());
            self.post.said = Some(said);
        }
        let before = self.post.said.as_ref().and_then(|said| said.condition.clone());
        if before.as_ref() == Some(wanted) {
            return Ok(());
        }
        let ask = Ask::of(Verb::Patch, NODES).named(own.name.as_str()).sub("status");
        let patch = wanted.patch(before.as_ref(), SystemTime::now());
        let answer = self.kube.client.patch(&ask, patch, Form::Json).await?;
        self.post.said = Some(read(&ask, &answer)?);
        let status = if wanted.unavailable { "True" } else { "False" };
        tracing::info!("node {}: NetworkUnavailable={status}, {}", own.name, wanted.reason);
        Ok(())
    }

    /// Says once why the condition cannot be kept; that the API is away is said elsewhere.
    fn complain(&mut self, own: &OwnNode, trouble: &Trouble) {
        let text = format!("cannot keep the condition NetworkUnavailable of node {}: {trouble}", own.name);
        if matches!(trouble.kind, Kind::Away | Kind::Busy(_) | Kind::Failed | Kind::NotFound) {
            tracing::debug!("{text}");
        } else if self.post.failure.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            self.post.failure = Some(text);
        }
    }

    /// Tells an Event, or once more if it is there already. Where we may not, that is no trouble.
    async fn tell_event(&mut self, own: &OwnNode, event: &Event) {
        let node = own.name.as_str();
        let create = Ask::of(Verb::Create, EVENTS).within(NAMESPACE);
        let mut made = self.kube.client.create(&create, event.object(node, SystemTime::now())).await;
        let is_there = made.as_ref().is_err_and(|trouble| trouble.kind == Kind::Conflict);
        if is_there {
            let patch = Ask::of(Verb::Patch, EVENTS).within(NAMESPACE).named(event.name(node));
            made = self.kube.client.patch(&patch, event.again(SystemTime::now()), Form::Json).await;
        }
        let now = Instant::now();
        if let Err(trouble) = &made {
            tracing::debug!("{trouble}");
        }
        match made.map_err(|trouble| trouble.kind) {
            Err(Kind::Forbidden) if !is_there => self.ledger.bar(now + BARRED),
            Err(Kind::Away | Kind::Failed) => self.ledger.bar(now + LONGEST_PAUSE),
            Err(Kind::Busy(wait)) => self.ledger.bar(now + wait.unwrap_or(LONGEST_PAUSE)),
            _ => self.ledger.told(event, now),
        }
    }
}

fn read(ask: &Ask, node: &[u8]) -> Result<Said, Trouble> {
    Said::read(node).map_err(|cause| Trouble::malformed(ask, &"its address", &cause))
}
