//! Servers that go away, come back, fall silent, or exchange what they are known by.

use std::fs;
use std::time::{Duration, Instant};

use flannel_kernel::process::rerun_enclosed;
use flannel_store::kube::{KubeStore, Server};
use flannel_store::{HoldError, Store};

use crate::laws::{CONFIG, Told, claim, config};
use crate::stage::{DOOR, Stage, cut, in_runtime, lose, mend, one};

#[test]
fn outages_take_no_peer_and_hide_none() {
    if !rerun_enclosed("outages::outages_take_no_peer_and_hide_none") {
        return;
    }
    let mut stage = Stage::new(&[]);
    stage.make_node("own", &["10.1.1.0/24"]);
    stage.make_peer("p2", 2);
    in_runtime(async {
        who_came_and_went_meanwhile_is_told(&stage).await;
        a_silent_server_is_noticed(&stage).await;
        a_server_may_begin_anew(&mut stage).await;
        another_server_is_asked(&stage).await;
        what_a_patch_meets_is_said(&stage).await;
    });
}

async fn who_came_and_went_meanwhile_is_told(stage: &Stage) {
    let store = stage.store("own");
    let mut told = Told::by(&*store).await;
    cut();
    stage.make_peer("p3", 3);
    stage.delete("p2");
    assert!(tokio::time::timeout(Duration::from_millis(1500), told.next()).await.is_err(), "told {}", told.summary());
    mend();
    told.until("p3=3").await;
    assert_eq!(told.snapshots, 1, "the watch goes on where it ended");
    stage.make_peer("p2", 2);
    told.until("p2=2 p3=3").await;
}

async fn a_silent_server_is_noticed(stage: &Stage) {
    let store = stage.store("own");
    let mut told = Told::by(&*store).await;
    lose();
    let begun = Instant::now();
    let moved = claim(9);
    let silent = store.hold(&config(CONFIG), &moved).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    assert!(matches!(silent, HoldError::Later(_)), "{silent}");
    stage.make_peer("p4", 4);
    mend();
    told.until("p2=2 p3=3 p4=4").await;
    stage.delete("p4");
    told.until("p2=2 p3=3").await;
    stage.api.halt(true).unwrap();
    let fresh = store_without_asking();
    let mut waiting = Told::from(&*fresh);
    waiting
        .until_it("waiting for the server", |told| told.waits.as_ref().is_some_and(|line| line.contains("no answer")))
        .await;
    stage.api.halt(false).unwrap();
    waiting.until("p2=2 p3=3").await;
    assert_eq!(waiting.waits, None);
}

/// A store that does not ask the server for a token first.
fn store_without_asking() -> Box<dyn Store> {
    let kubeconfig = Some("/run/api/flannel.kubeconfig".into());
    Box::new(KubeStore::new(crate::stage::options(&format!("https://{DOOR}:6443"), kubeconfig, "own")))
}

/// It knows nothing of what was before it: all are listed again, and nobody goes on that account.
async fn a_server_may_begin_anew(stage: &mut Stage) {
    let store = stage.store("own");
    let mut told = Told::by(&*store).await;
    stage.api.kill().unwrap();
    stage.api.resume().unwrap();
    stage.delete("p3");
    stage.make_peer("p5", 5);
    told.until("p2=2 p5=5").await;
    stage.delete("p5");
    told.until("p2=2").await;
}

async fn another_server_is_asked(stage: &Stage) {
    let mut options = stage.options("own");
    options.access.servers =
        Server::parse_list("https://127.0.0.3:6444,https://127.0.0.2:6443,https://127.0.0.1:6443").unwrap();
    let store = KubeStore::new(options);
    let mut told = Told::by(&store).await;
    assert_eq!(told.summary(), "p2=2");
    cut();
    stage.make_peer("p3", 3);
    told.until("p2=2 p3=3").await;
    mend();
    stage.delete("p3");
    told.until("p2=2").await;
}

async fn what_a_patch_meets_is_said(stage: &Stage) {
    let store = stage.store("own");
    let mut told = Told::by(&*store).await;
    let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    told.until("own=1 p2=2").await;
    cut();
    stage.annotate("own", &one("public-ip", "192.0.2.66"));
    mend();
    told.until("own=66 p2=2").await;
    told.keep(&*store, &held, &claim(1)).await.unwrap();
    told.until("own=1 p2=2").await;
}

#[test]
fn certificates_and_tokens_may_be_exchanged() {
    if !rerun_enclosed("outages::certificates_and_tokens_may_be_exchanged") {
        return;
    }
    let stage = Stage::new(&[]);
    stage.make_node("own", &["10.1.1.0/24"]);
    let token = || {
        let text = fs::read_to_string(stage.kubeconfig()).unwrap();
        text.lines().find_map(|line| line.trim().strip_prefix("token: ")).unwrap().to_owned()
    };
    fs::create_dir("/run/account").unwrap();
    let authority = fs::read(stage.api.authority()).unwrap();
    fs::write("/run/account/ca.crt", b"-----BEGIN CERTIFICATE-----\n").unwrap();
    fs::write("/run/account/token", "of-another-cluster").unwrap();
    let mut options = crate::stage::options(&format!("https://{DOOR}:6443"), None, "own");
    options.access.in_cluster = Some(Server::in_cluster(DOOR, "6443").unwrap());
    options.access.servers.clear();
    in_runtime(async {
        let store = KubeStore::new(options);
        let mut told = Told::from(&store);
        let waits = |part: &'static str| move |told: &Told| told.waits.as_ref().is_some_and(|line| line.contains(part));
        told.until_it("waiting for a certificate", waits("/run/account/ca.crt")).await;
        fs::write("/run/account/ca.crt", authority).unwrap();
        told.until_it(
            "waiting for a token",
            waits("cannot read node own: 401 Unauthorized (hint: the API does not know this token"),
        )
        .await;
        fs::write("/run/account/token", token()).unwrap();
        told.until_it("listed", |told| told.snapshots == 1).await;
        fs::write("/run/account/token", token()).unwrap();
        cut();
        stage.make_peer("p2", 2);
        mend();
        told.until("p2=2").await;
    });
}
