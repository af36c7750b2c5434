//! Files for Wireshark, read by `tshark`.

use std::process::Command;
use std::time::Duration;

use flannel_kernel::capture::{Addressee, Direction, Frame, LinkLayer};
use flannel_lab::walk::pcapng::Writer;

/// An echo request of 10.0.0.1 to 10.0.0.2 without a link layer.
const ECHO: [u8; 28] =
    [0x45, 0, 0, 28, 0, 9, 0, 0, 64, 1, 0x66, 0xd6, 10, 0, 0, 1, 10, 0, 0, 2, 8, 0, 0xf7, 0xfc, 0, 1, 0, 2];

/// What tshark reads of a file: a line for each frame, the fields parted by `|`.
fn tshark(file: &[u8], fields: &[&str]) -> Vec<String> {
    let path = std::env::temp_dir().join(format!("flannel-walk-{}.pcapng", std::process::id()));
    std::fs::write(&path, file).unwrap();
    let mut tshark = Command::new("tshark");
    tshark.arg("-nr").arg(&path).args(["-T", "fields", "-E", "separator=|"]);
    tshark.args(fields.iter().flat_map(|field| ["-e", field]));
    let output = tshark.output();
    std::fs::remove_file(&path).unwrap();
    let output = output.expect("tshark, of the package of that name");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{}", text(output.stderr));
    text(output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn tshark_reads_names_stamps_directions_and_comments() {
    let ethernet = [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0], &ECHO[..]].concat();
    let frame = |nanoseconds, direction, bytes: &[u8]| {
        let at = Duration::new(1_700_000_000, nanoseconds);
        Frame { at, direction, length: bytes.len() as u32, checksum_ready: true, bytes: bytes.to_vec() }
    };
    let mut writer = Writer::new(Vec::new()).unwrap();
    let pod = writer.point("pod1-1/eth0", LinkLayer::Ethernet).unwrap();
    writer.frame(pod, &frame(1, Direction::Out, &ethernet), Some("sent by the pod – 1")).unwrap();
    let tunnel = writer.point("node1/flannel0", LinkLayer::Ip).unwrap();
    writer.frame(tunnel, &frame(999_999_999, Direction::In(Addressee::Host), &ECHO), None).unwrap();
    let cut = Frame { length: 1500, ..frame(5, Direction::In(Addressee::OtherHost), &ethernet[..40]) };
    writer.frame(pod, &cut, None).unwrap();
    let file = writer.into_inner();

    let named = ["frame.interface_name", "frame.time_epoch", "frame.packet_flags_direction", "frame.comment", "ip.dst"];
    assert_eq!(
        tshark(&file, &named),
        [
            "pod1-1/eth0|1700000000.000000001|0x00000002|sent by the pod – 1|10.0.0.2",
            "node1/flannel0|1700000000.999999999|0x00000001||10.0.0.2",
            "pod1-1/eth0|1700000000.000000005|0x00000001||10.0.0.2",
        ]
    );
    let lengths = ["frame.len", "frame.cap_len", "icmp.type", "frame.packet_flags_reception_type"];
    assert_eq!(tshark(&file, &lengths), ["42|42|8|0", "28|28|8|1", "1500|40|8|4"]);
}
