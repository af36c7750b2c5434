//! The leases of others: lists, and garbage among them.

use super::stage::Scene;
use crate::scene::{VXLAN, mac, peer, peer_with_mac, record};

#[tokio::test(start_paused = true)]
async fn a_list_is_the_whole_truth() {
    let mut scene = Scene::running("list", VXLAN, [peer(2), peer(3)]).await;
    let own = scene.own_record();
    scene.snapshot([own, peer_with_mac(3, 33), peer(4)]);
    scene.turn().await.unwrap();
    assert_eq!(scene.routes(), ["10.244.3.0/24", "10.244.4.0/24"]);
    let state = scene.state();
    assert!(!state.contains("10.244.2.0") && !state.contains(&mac(3).to_string()), "{state}");
    assert_eq!(scene.asked().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn garbage_is_skipped_by_name_and_harms_nobody() {
    let vxlan = |subnet: &str, mac: &str| {
        let data = format!(r#""BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":{mac}}}"#);
        record(subnet, &format!(r#"{{"PublicIP":"192.0.2.66",{data},"Sequence":66}}"#))
    };
    let good = r#""02:00:00:00:00:42""#;
    let rows = [
        (record("10.244.66.0-24", "{bad"), "record"),
        (record("10.244.66.0-24", ""), "record"),
        (record("10.244.66.0-24", "[]"), "record"),
        (record("garbage", r#"{"PublicIP":"192.0.2.66"}"#), "key"),
        (record("10.42.999.0-24", r#"{"PublicIP":"192.0.2.66"}"#), "key"),
        (record("10.244.66.0-24", r#"{"PublicIP":"192.0.2.666","BackendType":"vxlan"}"#), "PublicIP"),
        (
            record("10.244.66.0-24", r#"{"PublicIP":"192.0.2.66","BackendType":"vxlan","BackendData":null}"#),
            "BackendData",
        ),
        (vxlan("10.244.66.0-24", "null"), "BackendData.VtepMAC"),
        (vxlan("10.244.66.0-24", r#""00:00:00:00:00:00""#), "BackendData.VtepMAC"),
        (vxlan("10.244.66.0-24", r#""01:00:5e:00:00:01""#), "BackendData.VtepMAC"),
        (vxlan("10.244.66.0-24", r#""02:00:00:00:00:00:00:01""#), "BackendData.VtepMAC"),
        (vxlan("10.9.66.0-24", good), "subnet"),
        (vxlan("192.0.2.0-24", good), "subnet"),
        (vxlan("10.244.0.0-20", good), "subnet"),
        (vxlan("10.244.1.0-24&fc00::-64", good), "subnet"),
        (vxlan("10.244.2.0-25", good), "subnet"),
        (record("10.244.66.0-24", r#"{"PublicIP":"192.0.2.66","BackendType":"wireguard"}"#), "BackendType"),
    ];
    for (garbage, field) in rows {
        let mut scene = Scene::running("garbage", VXLAN, [peer(2)]).await;
        let text = format!("{garbage:?}");
        let key = garbage.key.clone();
        scene.put(garbage);
        scene.put(peer(3));
        scene.turn().await.unwrap();
        assert_eq!(scene.routes(), ["10.244.2.0/24", "10.244.3.0/24"], "{text}");
        let remarks = scene.remarks();
        assert!(remarks.iter().any(|remark| remark.starts_with(&format!("{key}: {field}"))), "{text}: {remarks:?}");
        scene.assert_ready();
        scene.remove(key.clone());
        scene.turn().await.unwrap();
        assert_eq!((scene.remarks(), scene.asked().len()), (Vec::new(), 0), "{text}");
    }
}
