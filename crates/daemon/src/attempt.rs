//! A call into a store that is tried again, ever less often, until it succeeds; waited for without holding anything up.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

/// First and longest pause between two calls.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Where we are with a call.
pub(crate) struct Attempt<T> {
    state: State<T>,
    pause: Duration,
}

enum State<T> {
    Idle,
    Calling(Pin<Box<dyn Future<Output = T>>>),
    Waiting(Instant),
}

/// What [`Attempt::step`] comes back with.
pub(crate) enum Step<T> {
    /// The call's answer.
    Answer(T),
    /// The pause is over: call again.
    Again,
}

impl<T> Attempt<T> {
    /// No call yet.
    pub(crate) fn new() -> Self {
        Self { state: State::Idle, pause: PAUSES.0 }
    }

    /// Starts a call; one under way is dropped.
    pub(crate) fn call(&mut self, call: impl Future<Output = T> + 'static) {
        self.state = State::Calling(Box::pin(call));
    }

    /// Plans the next call after a failure, and says in how long.
    pub(crate) fn wait(&mut self) -> Duration {
        let pause = self.pause;
        self.state = State::Waiting(Instant::now() + pause);
        self.pause = (pause * 2).min(PAUSES.1);
        pause
    }

    /// It worked: no further call, and the next failure is the first again.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::new();
    }

    /// Whether there is neither a call nor a pause.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Whether there is a pause before the next call.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(_))
    }

    /// Waits for the answer or the end of the pause; for ever when idle. Dropping the future loses nothing.
    pub(crate) async fn step(&mut self) -> Step<T> {
        let step = match &mut self.state {
            State::Idle => pending().await,
            State::Calling(call) => Step::Answer(call.await),
            State::Waiting(due) => {
                tokio::time::sleep_until(*due).await;
                Step::Again
            }
        };
        self.state = State::Idle;
        step
    }
}
