//! The lock on the orders is free while the kernel is asked; orders that change under a pass are not mixed.

use std::sync::mpsc;
use std::time::Duration;

use flannel_core::diff::Op;
use flannel_core::state::{Scope, State};
use flannel_kernel::executor::{Noticed, OpError};
use flannel_kernel::fake::FakeKernel;

use super::*;
use crate::scene::{VXLAN, peer, want};

/// A kernel so slow that the loop changes its mind whenever it is asked something.
struct Slow {
    kernel: FakeKernel,
    orders: Arc<Orders>,
    /// What is ours from the second question on.
    scope: Scope,
    /// The scopes it was read with.
    read: Vec<Scope>,
}

impl Executor for Slow {
    fn observe(&mut self, scope: &Scope) -> Result<State, ObserveError> {
        self.orders.change(|desired| desired.scope = self.scope.clone());
        self.read.push(scope.clone());
        self.kernel.observe(scope)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<OpError> {
        self.orders.change(|_| ());
        self.kernel.apply(ops)
    }

    fn notices(&mut self, scope: &Scope, have: &mut State) -> Result<Noticed, ObserveError> {
        self.orders.change(|_| ());
        self.kernel.notices(scope, have)
    }

    fn resync(&mut self, scope: &Scope, have: &mut State) -> Result<(), ObserveError> {
        self.orders.change(|_| ());
        self.kernel.resync(scope, have)
    }
}

#[test]
fn the_loop_can_change_its_mind_while_the_kernel_is_asked() {
    let (done, finished) = mpsc::channel();
    // If the lock were held, this thread would wait for itself for ever.
    std::thread::spawn(move || {
        let orders = Arc::new(Orders::new().unwrap());
        let scope = Scope { networks: vec!["10.244.0.0/16".parse().unwrap()], ..Scope::default() };
        let slow =
            Slow { kernel: FakeKernel::new(), orders: Arc::clone(&orders), scope: scope.clone(), read: Vec::new() };
        let mut upkeep = Upkeep::new(slow, Arc::clone(&orders));
        assert_eq!(upkeep.pass(Instant::now()).unwrap(), Outcome::default(), "nothing is wanted yet");
        let want = want(VXLAN, [peer(2)]);
        let objects = want.len();
        orders.change(|desired| desired.want(want));
        let outcome = upkeep.pass(Instant::now()).unwrap();
        upkeep.reconciler.notices().unwrap();
        upkeep.reconciler.resync().unwrap();
        let slow = upkeep.reconciler.executor();
        assert_eq!((outcome.busy, slow.kernel.state().objects.len()), (true, objects));
        assert_eq!(slow.read, [Scope::default(), scope], "what is ours changed meanwhile: it is read anew");
        // The first order and two readings; what came later is the next pass's.
        assert_eq!(outcome.report, Some(Report { version: 3, whole: true, ..Report::default() }));
        done.send(()).unwrap();
    });
    finished.recv_timeout(Duration::from_secs(10)).expect("the pass ends");
}

#[test]
fn a_full_read_is_told_since_it_swallows_notices() {
    let orders = Arc::new(Orders::new().unwrap());
    orders.change(|desired| desired.want(Want::new()));
    let mut upkeep = Upkeep::new(FakeKernel::new(), Arc::clone(&orders));
    let reads = |upkeep: &mut Upkeep<FakeKernel>| upkeep.pass(Instant::now()).unwrap().read;
    assert_eq!([reads(&mut upkeep), reads(&mut upkeep)], [true, false]);
    orders.change(|desired| desired.scope.externals.push("eth1".parse().unwrap()));
    assert_eq!([reads(&mut upkeep), reads(&mut upkeep)], [true, false], "what is ours changed");
    upkeep.reconciler.forget();
    assert!(reads(&mut upkeep));
}
