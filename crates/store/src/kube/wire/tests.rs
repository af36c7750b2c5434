//! Messages made by hand, as the API makes them, and what is read of them.

use super::*;

/// A field that has a length.
fn bytes(number: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut field = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(content);
    field
}

/// A field whose number takes two bytes.
fn far(number: u32, content: &str) -> Vec<u8> {
    let mut field = bytes(0, content);
    field.splice(0..1, [(number << 3 | 2) as u8 | 0x80, (number >> 4) as u8]);
    field
}

fn annotation(key: &str, value: &str) -> Vec<u8> {
    bytes(12, [bytes(1, key), bytes(2, value)].concat())
}

fn node(annotations: &[(&str, &str)], spec: &[u8]) -> Vec<u8> {
    let mut meta = [bytes(1, "n1"), bytes(5, "00000000-0000-0001-0000-0000000000ff"), bytes(6, "77")].concat();
    meta.extend(bytes(8, [0x08, 0x05]));
    for (key, value) in annotations {
        meta.extend(annotation(key, value));
    }
    meta.extend(far(17, "managed"));
    [bytes(1, meta), bytes(2, spec)].concat()
}

fn object(kind: &str, message: &[u8]) -> Vec<u8> {
    [b"k8s\0".to_vec(), bytes(1, [bytes(1, "v1"), bytes(2, kind)].concat()), bytes(2, message), bytes(3, "")].concat()
}

fn event(name: &str, object: &[u8]) -> Vec<u8> {
    [bytes(1, name), bytes(2, bytes(1, object))].concat()
}

const OURS: [(&str, &str); 2] = [("flannel.alpha.coreos.com/public-ip", "192.0.2.1"), ("other.org/x", "y")];

#[test]
fn an_event_of_a_node_is_read() {
    let frame = event("ADDED", &object("Node", &node(&OURS, &[])));
    let WatchEvent { event, object } = WatchEvent::read(&frame).unwrap();
    let Object { kind, message } = Object::read(object).unwrap();
    assert_eq!((event, kind), ("ADDED", "Node"));
    let meta = Meta::of(message).unwrap();
    assert_eq!((meta.name, meta.uid, meta.version), ("n1", (1, 255), "77"));
    assert_eq!(meta.since, Since { at: 5, tie: 1 });
    let ours = meta.ours(&Prefix::default()).unwrap();
    assert_eq!(ours.into_iter().collect::<Vec<_>>(), [(OURS[0].0.to_owned(), OURS[0].1.to_owned())]);
    assert!(!meta.ends_list());
}

#[test]
fn only_flannels_annotations_count() {
    let digest =
        |annotations: &[(&str, &str)]| Meta::of(&node(annotations, &[])).unwrap().digest(&Prefix::default()).unwrap();
    assert_eq!(digest(&OURS), digest(&[OURS[0], ("other.org/x", "z"), ("other.org/y", "")]));
    assert_ne!(digest(&OURS), digest(&[(OURS[0].0, "192.0.2.2"), OURS[1]]));
    assert_ne!(digest(&OURS), digest(&OURS[1..]));
}

#[test]
fn subnets_of_a_node() {
    let read = |spec: &[Vec<u8>]| match pod_cidrs(&node(&[], &spec.concat())).unwrap() {
        None => "none".to_owned(),
        Some(Ok(subnets)) => subnets.values().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        Some(Err(flaw)) => flaw.to_string(),
    };
    assert_eq!(read(&[]), "none");
    assert_eq!(read(&[bytes(1, "")]), "none");
    assert_eq!(read(&[bytes(1, "10.1.1.0/24"), bytes(3, "provider")]), "10.1.1.0/24");
    assert_eq!(
        read(&[bytes(1, "10.1.1.0/24"), bytes(7, "10.1.1.0/24"), bytes(7, "fd00::/64")]),
        "10.1.1.0/24 fd00::/64"
    );
    let three = [bytes(7, "10.1.1.0/24"), bytes(7, "fd00::/64"), bytes(7, "10.1.2.0/24")];
    assert_eq!(read(&three), "spec.podCIDRs: holds more than one IPv4 prefix");
}

#[test]
fn a_streamed_list_ends_where_it_says() {
    let mark = node(&[("k8s.io/initial-events-end", "true")], &[]);
    assert!(Meta::of(&mark).unwrap().ends_list());
}

#[test]
fn other_answers() {
    let pod = [bytes(1, bytes(1, "p")), bytes(2, bytes(10, "n7"))].concat();
    assert_eq!(node_of_pod(&pod), Ok("n7"));
    assert_eq!(node_of_pod(&bytes(2, "")), Ok(""));
    let status = Status { message: "gone".into(), code: 410 };
    assert_eq!(Status::read(&[bytes(3, "gone"), vec![0x30, 0x9a, 0x03]].concat()), Ok(status.clone()));
    assert_eq!(Status::read_json(br#"{"kind": "Status", "message": "gone", "code": 410}"#), Ok(status));
    assert!(Status::read_json(b"<html>").is_err());
    let list = [bytes(2, "9"), bytes(3, "go on")].concat();
    assert_eq!(ListMeta::read(&list), Ok(ListMeta { version: "9".into(), next: "go on".into() }));
}

#[test]
fn what_is_cut_off_is_no_message_but_has_a_name() {
    let whole = event("ADDED", &object("Node", &node(&[("x", &"y".repeat(5000))], &[])));
    for length in 1..whole.len() {
        assert!(WatchEvent::read(&whole[..length]).and_then(|event| Object::read(event.object)).is_err(), "{length}");
    }
    assert_eq!(name_in_cut_event(&whole[..400]), Some("n1"));
    assert_eq!(name_in_cut_event(&whole[..20]), None);
    assert_eq!(name_in_cut_object(&node(&OURS, &[])[..60]), Some("n1"));
}

#[test]
fn nonsense_is_malformed() {
    for nonsense in [&[0xff_u8; 40][..], b"k8s\0\xff", b"\x0b", b"\x0a\x7f", b"{}"] {
        assert!(fields(nonsense).any(|field| field.is_err()) || Object::read(nonsense).is_err(), "{nonsense:?}");
    }
    assert!(varint(&[0x80; 10]).is_err());
    assert_eq!(varint(&[0x80; 9]), Ok(None));
    assert!(Meta::of(&bytes(1, bytes(1, [0xff]))).is_err());
}

#[test]
fn uids() {
    assert_eq!(read_uid(b"0123abcd-0000-0000-ffff-ffffffffffff"), (0x0123_abcd_0000_0000, u64::MAX));
    assert_eq!(read_uid(b"x"), read_uid(b"x"));
    assert_ne!(read_uid(b"x"), read_uid(b"y"));
}
