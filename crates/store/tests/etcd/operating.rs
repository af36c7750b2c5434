//! What people do with the records, beside daemons that hold them.

use std::net::IpAddr;
use std::time::Duration;

use flannel_core::addr::Dual;
use flannel_kernel::process::rerun_enclosed;
use flannel_store::etcd::operator::{Keeping, Operator, OperatorError};
use ipnet::IpNet;
use tokio::task::LocalSet;
use tokio::time::sleep;

use crate::access::{as_user, with_users};
use crate::laws::{Bench, CONFIG, Told, claim, config};
use crate::{Place, host, in_runtime, server, store};

fn subnet(text: &str) -> Dual<IpNet> {
    Dual::of_nets(text.parse().ok())
}

fn public_ip(host: u8) -> Dual<IpAddr> {
    Dual { v4: Some([192, 0, 2, host].into()), v6: None }
}

#[test]
fn a_lease_that_was_reserved_outlives_its_renewals() {
    if !rerun_enclosed("operating::a_lease_that_was_reserved_outlives_its_renewals") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let daemon = store(place.brief(), 1);
        let mut told = Told::by(&*daemon).await;
        let held = daemon.hold(&config(CONFIG), &claim(1)).await.unwrap();
        told.until(&format!("{}=1", held.key)).await;
        let text = place.record(held.key.as_str()).await;
        let operator = Operator::new(place.options());
        let (_, before) = operator.reserve(&held.lease.subnet, &public_ip(1)).await.unwrap();
        assert!(matches!(before.unwrap().keeping, Keeping::Lease { .. }));
        sleep(Duration::from_secs(5)).await;
        assert_eq!((place.record(held.key.as_str()).await, place.written(held.key.as_str()).1), (text, 0));
        let census = operator.census().await.unwrap();
        assert_eq!(census.records[0].holder, Some(host(1)), "its signature outlives them too");
        assert_eq!(daemon.hold(&config(CONFIG), &claim(1)).await.unwrap(), held);
        operator.release(&held.key, &host(2), false).await.unwrap();
        told.until("").await;
        told.keep(&*daemon, &held, &claim(1)).await.unwrap();
        assert_ne!(place.written(held.key.as_str()).1, 0, "it is a lease again");
        let refused = operator.release(&held.key, &host(2), false).await.unwrap_err();
        assert!(matches!(&refused, OperatorError::Alive { owner, .. } if owner.contains("host node-1")), "{refused}");
        operator.release(&held.key, &host(1), false).await.unwrap();
    });
}

#[test]
fn of_many_who_reserve_at_once_one_has_it() {
    if !rerun_enclosed("operating::of_many_who_reserve_at_once_one_has_it") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let people = LocalSet::new();
        let reserve = |host: u8| {
            let operator = Operator::new(place.options());
            people.spawn_local(async move { operator.reserve(&subnet("10.1.7.0/24"), &public_ip(host)).await })
        };
        let tasks: Vec<_> = (1..=8).map(reserve).collect();
        people.await;
        let mut refused = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => {}
                Err(OperatorError::Taken { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(refused, 7);
    });
}

#[test]
fn the_least_rights_are_enough() {
    if !rerun_enclosed("operating::the_least_rights_are_enough") {
        return;
    }
    server::make_stage();
    let _server = with_users(&[&["read", "/n/config"], &["--prefix=true", "readwrite", "/n/subnets/"]]);
    in_runtime(async {
        let operator = Operator::new(as_user("flannel", "s3cret"));
        let (name, _) = operator.reserve(&subnet("10.1.7.0/24"), &public_ip(7)).await.unwrap();
        assert_eq!(operator.census().await.unwrap().records.len(), 1);
        operator.release(&name, &host(1), false).await.unwrap();
        let denied = operator.set_config(r#"{"Network": "10.2.0.0/16", "Backend": {"Type": "vxlan"}}"#, false).await;
        let denied = denied.unwrap_err();
        assert!(denied.to_string().contains("cannot write /n/config: etcdserver: permission denied"), "{denied}");
        let stranger = Operator::new(as_user("flannel", "wr0ng")).census().await.unwrap_err();
        assert!(
            stranger.hint().unwrap().contains("correct --etcd-username") && !format!("{stranger:?}").contains("wr0ng")
        );
    });
}
