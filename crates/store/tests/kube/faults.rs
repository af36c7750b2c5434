//! Faults that a real server cannot be made to have.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flannel_kernel::process::rerun_enclosed;
use flannel_store::kube::KubeStore;

use crate::laws::Told;
use crate::scripted::{Answer, Asked, End, bytes, event, head, mark, node, object, serve, status};
use crate::stage::{in_runtime, options, prepare};

const PEER: [(&str, &str); 4] = [
    ("flannel.alpha.coreos.com/kube-subnet-manager", "true"),
    ("flannel.alpha.coreos.com/backend-type", "vxlan"),
    ("flannel.alpha.coreos.com/backend-data", "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:02\"}"),
    ("flannel.alpha.coreos.com/public-ip", "192.0.2.2"),
];

/// Our own Node and a peer.
fn nodes() -> [Vec<u8>; 2] {
    [node("own", "5", &[], "10.1.1.0/24"), node("p2", "6", &PEER, "10.1.2.0/24")]
}

fn own() -> Answer {
    let [own, _] = nodes();
    Answer::of(200, object("Node", own))
}

/// A list of both, as it is streamed.
fn listed() -> Vec<u8> {
    [nodes().map(|node| event("ADDED", node)).concat(), mark("7")].concat()
}

/// What was gone on from is not there any more.
fn too_old() -> Answer {
    Answer::of(200, event("ERROR", status(410, "too old resource version"))).goes_on()
}

/// A Node that cannot be read the first time.
fn failing_once(reads: &AtomicUsize, node: Vec<u8>) -> Answer {
    match reads.fetch_add(1, Ordering::Relaxed) {
        0 => Answer::of(500, object("Status", status(500, "not now"))),
        _ => Answer::of(200, object("Node", node)),
    }
}

fn store(address: &str) -> KubeStore {
    KubeStore::new(options(address, None, "own"))
}

fn is_list(path: &str) -> bool {
    path.contains("sendInitialEvents")
}

/// What a server answers that has no fault.
fn usual(path: &str) -> Answer {
    match path {
        path if !path.contains('?') => own(),
        path if is_list(path) => Answer::of(200, listed()).goes_on(),
        _ => Answer::of(200, Vec::new()).goes_on(),
    }
}

/// How often something was asked.
fn times(asked: &Asked, part: &str) -> usize {
    asked.all().iter().filter(|(_, path)| path.contains(part)).count()
}

fn check(name: &str, test: impl Future<Output = ()>) {
    if rerun_enclosed(name) {
        prepare();
        in_runtime(test);
    }
}

#[test]
fn a_busy_server_is_left_alone_as_long_as_it_says() {
    check("faults::a_busy_server_is_left_alone_as_long_as_it_says", async {
        let lists = AtomicUsize::new(0);
        let (address, asked) = serve(move |path| match path {
            path if is_list(path) && lists.fetch_add(1, Ordering::Relaxed) == 0 => Answer {
                headers: vec![("retry-after", "2".into())],
                ..Answer::of(429, object("Status", status(429, "too many requests")))
            },
            _ => usual(path),
        })
        .await;
        let store = store(&address);
        let mut told = Told::from(&store);
        told.until_it("waiting", |told| {
            told.waits.as_ref().is_some_and(|line| {
                line.contains("cannot watch nodes: 429 too many requests (hint: the API server is overloaded")
            })
        })
        .await;
        told.until("p2=2").await;
        let lists: Vec<_> = asked.all().into_iter().filter(|(_, path)| is_list(path)).map(|(at, _)| at).collect();
        assert!(lists[1] - lists[0] >= Duration::from_secs(2));
    });
}

#[test]
fn what_breaks_off_is_begun_again() {
    check("faults::what_breaks_off_is_begun_again", async {
        let watches = AtomicUsize::new(0);
        let (address, asked) = serve(move |path| match path {
            path if path.contains("resourceVersion=7") => {
                let more = event("MODIFIED", node("p2", "9", &PEER[..3], "10.1.2.0/24"));
                let (begin, end) = match watches.fetch_add(1, Ordering::Relaxed) {
                    0 => (more[..more.len() / 2].to_vec(), End::Whole),
                    1 => (more[..3].to_vec(), End::Broken),
                    2 => (b"\0\0\0\x04junk".to_vec(), End::Never),
                    _ => (more, End::Never),
                };
                Answer { end, ..Answer::of(200, begin) }
            }
            _ => usual(path),
        })
        .await;
        let store = store(&address);
        let mut told = Told::by(&store).await;
        assert_eq!(told.summary(), "p2=2");
        told.until("p2!").await;
        assert_eq!((told.snapshots, times(&asked, "resourceVersion=7")), (1, 4));
    });
}

#[test]
fn a_watch_that_cannot_go_on_lists_again() {
    check("faults::a_watch_that_cannot_go_on_lists_again", async {
        let watches = AtomicUsize::new(0);
        let (address, asked) = serve(move |path| match path {
            path if path.contains("resourceVersion=7") && watches.fetch_add(1, Ordering::Relaxed) == 0 => too_old(),
            _ => usual(path),
        })
        .await;
        let store = store(&address);
        let mut told = Told::by(&store).await;
        told.until_it("listed again", |told| told.snapshots == 2).await;
        assert_eq!((told.summary().as_str(), told.waits.as_ref()), ("p2=2", None));
        // The second list is of metadata alone, and goes on as a watch.
        assert_eq!((times(&asked, "sendInitialEvents"), times(&asked, "resourceVersion=7")), (2, 1));
    });
}

/// As on an etcd that tells no progress.
#[test]
fn a_server_that_fails_to_stream_a_list_is_asked_for_pages() {
    check("faults::a_server_that_fails_to_stream_a_list_is_asked_for_pages", async {
        let (address, asked) = serve(|path| match path {
            path if is_list(path) => {
                let why = "the required storage feature RequestWatchProgress is disabled";
                Answer::of(500, object("Status", status(500, why)))
            }
            path if path.contains("limit=") => {
                let items = nodes().map(|node| bytes(2, node)).concat();
                Answer::of(200, object("NodeList", [bytes(1, bytes(2, "7")), items].concat()))
            }
            path => usual(path),
        })
        .await;
        let store = store(&address);
        let told = Told::by(&store).await;
        assert_eq!((told.summary().as_str(), told.waits.as_ref()), ("p2=2", None));
        assert_eq!((times(&asked, "sendInitialEvents"), times(&asked, "limit=")), (1, 1));
    });
}

#[test]
fn a_list_that_could_not_be_told_is_made_again() {
    check("faults::a_list_that_could_not_be_told_is_made_again", async {
        let (watches, reads) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let peer = || node("p3", "6", &PEER, "10.1.3.0/24");
        let (address, asked) = serve(move |path| match path {
            // The second list has a Node that has to be read alone, which fails at first.
            path if path.ends_with("/p3") => failing_once(&reads, peer()),
            path if is_list(path) && watches.load(Ordering::Relaxed) > 0 => {
                Answer::of(200, [event("ADDED", peer()), mark("8")].concat()).goes_on()
            }
            path if path.contains("resourceVersion=7") && watches.fetch_add(1, Ordering::Relaxed) == 0 => too_old(),
            _ => usual(path),
        })
        .await;
        let store = store(&address);
        let mut told = Told::by(&store).await;
        assert_eq!(told.summary(), "p2=2");
        told.until("p3=2").await;
        assert_eq!((times(&asked, "sendInitialEvents"), times(&asked, "/p3")), (3, 2));
    });
}

#[test]
fn a_node_that_could_not_be_read_is_read_again() {
    check("faults::a_node_that_could_not_be_read_is_read_again", async {
        let reads = AtomicUsize::new(0);
        let peer = || node("p3", "8", &PEER, "10.1.3.0/24");
        let (address, asked) = serve(move |path| match path {
            path if path.ends_with("/p3") => failing_once(&reads, peer()),
            path if path.contains("resourceVersion=7") => Answer::of(200, event("ADDED", peer())).goes_on(),
            _ => usual(path),
        })
        .await;
        let store = store(&address);
        let mut told = Told::by(&store).await;
        told.until("p2=2 p3=2").await;
        assert_eq!((told.snapshots, times(&asked, "resourceVersion=8"), times(&asked, "/p3")), (1, 1, 2));
    });
}

#[test]
fn a_bomb_is_passed_over_by_name() {
    check("faults::a_bomb_is_passed_over_by_name", async {
        const BOMB: usize = 1 << 30;
        let (address, _) = serve(|path| match path {
            path if path.contains("resourceVersion=7") => {
                // An annotation of a GiB, in an event whose beginning is as it should be.
                let entry = [bytes(1, "bomb"), head(2, BOMB)].concat();
                let meta = [bytes(1, "p9"), bytes(6, "8"), head(12, entry.len() + BOMB), entry].concat();
                let meta = [head(1, meta.len() + BOMB), meta].concat();
                let object = [b"k8s\0".to_vec(), head(2, meta.len() + BOMB), meta].concat();
                let object = [head(1, object.len() + BOMB), object].concat();
                let event = [bytes(1, "ADDED"), head(2, object.len() + BOMB), object].concat();
                let begin = [((event.len() + BOMB) as u32).to_be_bytes().to_vec(), event].concat();
                Answer { zeroes: BOMB, end: End::Never, ..Answer::of(200, begin) }
            }
            _ => usual(path),
        })
        .await;
        let store = store(&address);
        let mut told = Told::by(&store).await;
        let before = peak();
        told.until("p2=2 p9!").await;
        assert!(peak() - before < 32 << 20, "{} MiB more were held", (peak() - before) >> 20);
    });
}

/// The most memory that this process ever had, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn what_is_no_api_is_said_to_be_none() {
    check("faults::what_is_no_api_is_said_to_be_none", async {
        for (answer, why) in [
            (Answer::of(200, b"<html>hello</html>".to_vec()), "cannot read node own: "),
            (Answer::of(502, b"<html>\nbad gateway".to_vec()), "cannot read node own: 502 <html>"),
            (
                Answer::of(500, object("Status", status(500, "etcdserver: no leader"))),
                "cannot read node own: 500 etcdserver: no leader",
            ),
            (Answer { end: End::Silent, ..Answer::default() }, "cannot read node own: no answer in 4 s"),
        ] {
            let (address, _) = serve(move |_| answer.clone()).await;
            let store = store(&address);
            let mut told = Told::from(&store);
            told.until_it(why, |told| told.waits.as_ref().is_some_and(|line| line.contains(why))).await;
        }
    });
}

#[test]
fn the_config_is_told_with_its_files_name() {
    check("faults::the_config_is_told_with_its_files_name", async {
        let (address, _) = serve(usual).await;
        // As a ConfigMap is mounted: a link to a folder that is exchanged.
        std::fs::create_dir_all("/run/cm/..1").unwrap();
        std::os::unix::fs::symlink("..1", "/run/cm/..data").unwrap();
        std::os::unix::fs::symlink("..data/net-conf.json", "/run/cm/net-conf.json").unwrap();
        let store = KubeStore::new(flannel_store::kube::Options {
            config: "/run/cm/net-conf.json".into(),
            ..options(&address, None, "own")
        });
        let mut told = Told::from(&store);
        let is_bad =
            |part: &'static str| move |told: &Told| matches!(&told.config, Some(Err(why)) if why.contains(part));
        told.until_it("told that it is absent", is_bad("cannot read /run/cm/net-conf.json: No such file")).await;
        let exchange = |number: u8, text: &str| {
            let folder = format!("/run/cm/..{number}");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(format!("{folder}/net-conf.json"), text).unwrap();
            std::os::unix::fs::symlink(format!("..{number}"), "/run/cm/..new").unwrap();
            std::fs::rename("/run/cm/..new", "/run/cm/..data").unwrap();
        };
        exchange(2, crate::laws::CONFIG);
        told.until_config(&Ok(crate::laws::CONFIG.into())).await;
        exchange(3, "{}");
        told.until_it("told of what is missing", is_bad("/run/cm/net-conf.json: network config has no Network")).await;
        exchange(4, "{bad");
        told.until_it("told that it is nonsense", is_bad("/run/cm/net-conf.json: network config is not a JSON object"))
            .await;
    });
}
