//! The network config while the daemon runs, and the flags: what changes, what stays, what is refused.

use std::time::Duration;

use flannel_core::facts::AddressFact;

use super::super::*;
use super::DUAL;
use super::stage::Scene;
use crate::scene::{HOST_GW, VXLAN, gateway, host, peer};

#[tokio::test(start_paused = true)]
async fn a_config_that_breaks_leaves_the_one_before_in_force() {
    let mut scene = Scene::running("broken-config", VXLAN, [peer(2)]).await;
    let state = scene.state();
    scene.config("{");
    scene.tell(StoreEvent::Config(Err("cannot read config.json: not found".into())));
    scene.config(VXLAN);
    scene.turn().await.unwrap();
    scene.assert_ready();
    scene.put(peer(3));
    scene.turn().await.unwrap();
    assert_eq!((scene.routes(), scene.asked().len()), (vec!["10.244.2.0/24".into(), "10.244.3.0/24".into()], 0));
    assert!(scene.state().starts_with(state.lines().next().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn the_config_changes_live() {
    let mut scene = Scene::running("live", VXLAN, [peer(2)]).await;
    let with = |nft: bool, backend: &str| {
        format!(r#"{{"Network":"10.244.0.0/16","EnableNFTables":{nft},"Backend":{{"Type":"vxlan"{backend}}}}}"#)
    };
    scene.config(&with(true, r#","MTU":1400"#));
    scene.turn().await.unwrap();
    assert!(scene.state().contains("link flannel.1 mtu 1350 "), "{}", scene.state());
    assert!(scene.subnet_env().unwrap().contains("FLANNEL_MTU=1350\n"));
    scene.config(&with(true, r#","DirectRouting":true"#));
    scene.turn().await.unwrap();
    assert!(scene.state().contains("route 10.244.2.0/24 via 192.0.2.2 dev eth0\n"), "{}", scene.state());
    assert!(!scene.state().contains("fdb"), "{}", scene.state());
    scene.config(&with(false, ""));
    scene.turn().await.unwrap();
    assert!(scene.state().contains("iptables chains") && !scene.state().contains("table ip flannel-ipv4"));
    assert!(scene.asked().is_empty(), "nothing of that is in our lease");
    scene.config(&with(true, r#","VNI":7"#));
    scene.turn().await.unwrap();
    let state = scene.state();
    assert!(state.contains("link flannel.7 ") && !state.contains("flannel.1 "), "{state}");
    assert_eq!(scene.asked().len(), 1, "our VNI is");
    scene.config(HOST_GW);
    scene.put(gateway(2));
    scene.turn().await.unwrap();
    let state = scene.state();
    assert!(state.starts_with("route 10.244.2.0/24 via 192.0.2.2 dev eth0\n"), "{state}");
    assert!(!state.contains("iptables"), "{state}");
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn a_config_that_this_host_cannot_follow_leaves_the_one_before_in_force() {
    let mut scene = Scene::running("misfit", VXLAN, [peer(2)]).await;
    scene.config(DUAL);
    scene.turn().await.unwrap();
    let misfit = "interface eth0 has no usable IPv6 address, and the network has IPv6 enabled; what was decided before stays in force";
    assert!(scene.agent.misfit.as_ref().is_some_and(|told| told.starts_with(misfit)), "{:?}", scene.agent.misfit);
    // What happens on the host is followed all the same.
    scene.facts(host(50));
    scene.turn().await.unwrap();
    assert!(scene.state().contains("id 1 local 192.0.2.50 dev eth0"), "{}", scene.state());
    assert_eq!(scene.asked().len(), 1);
    scene.assert_ready();
    scene.config(VXLAN);
    scene.turn().await.unwrap();
    assert_eq!(scene.agent.misfit, None);
}

#[tokio::test(start_paused = true)]
async fn a_second_family_joins_live() {
    let mut scene = Scene::running("dual", VXLAN, [peer(2)]).await;
    scene.config(DUAL);
    scene.turn().await.unwrap();
    scene.assert_ready();
    assert!(!scene.state().contains("flannel-v6.1"), "no IPv6 address here: the old network stays");
    let mut facts = host(1);
    let address = facts.links[0].addresses[0];
    facts.links[0].addresses.push(AddressFact { net: "2001:db8::1/64".parse().unwrap(), ..address });
    scene.later("the store is away");
    scene.facts(facts);
    scene.put(peer(3));
    scene.turn().await.unwrap();
    assert_eq!(scene.routes(), ["10.244.2.0/24", "10.244.3.0/24"], "until it is leased, the plan before goes on");
    scene.turn_after(Duration::from_millis(250)).await.unwrap();
    assert!(scene.state().contains("link flannel-v6.1 mtu 1430 "), "{}", scene.state());
    assert_eq!(scene.routes(), ["10.244.2.0/24", "10.244.3.0/24"]);
    let text = scene.subnet_env().unwrap();
    assert!(text.contains("FLANNEL_IPV6_SUBNET=2001:db8:42:1::1/64\nFLANNEL_MTU=1430\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn without_masquerading_there_is_none() {
    for (words, masquerades) in [(vec![], true), (vec!["--ip-masq=false"], false)] {
        let mut scene = Scene::start("masq", &words);
        scene.config(VXLAN);
        scene.snapshot([peer(2)]);
        scene.turn().await.unwrap();
        assert_eq!(scene.state().contains("masquerade"), masquerades, "{}", scene.state());
        let line = format!("FLANNEL_IPMASQ={masquerades}\n");
        assert!(scene.subnet_env().unwrap().ends_with(&line));
    }
}

#[tokio::test(start_paused = true)]
async fn routes_and_blackholes_of_networks_before_stay_ours() {
    let mut scene = Scene::start("before", &["--ip-blackhole-route"]);
    scene.config(VXLAN);
    scene.snapshot([peer(2)]);
    scene.turn().await.unwrap();
    assert!(scene.state().contains("route blackhole 10.244.1.0/24\n"), "{}", scene.state());
    scene.config(r#"{"Network":"10.99.0.0/16","EnableNFTables":true,"Backend":{"Type":"host-gw"}}"#);
    scene.turn().await.unwrap();
    let state = scene.state();
    assert!(state.starts_with("route blackhole 10.99.1.0/24\ntable ip flannel-ipv4"), "{state}");
    let scope = scene.upkeep.reconciler.scope();
    let texts = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(texts(&scope.networks), ["10.244.0.0/16", "10.99.0.0/16"].map(ToOwned::to_owned).into());
    assert_eq!(texts(&scope.blackholes), ["10.244.1.0/24", "10.99.1.0/24"].map(ToOwned::to_owned).into());
}
