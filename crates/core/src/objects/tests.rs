//! The law: whatever happens, the objects held are those of a plain map, and the differences those of two.

use proptest::prelude::*;

use super::*;
use crate::state::Route;

#[derive(Debug, Clone)]
enum Act {
    Set(Key, Option<Value>),
    Retain(bool),
    Hold(Objects),
    Want(Want),
    Rewant(Rewant),
}

fn any_object() -> impl Strategy<Value = (Key, Value)> {
    let value = prop_oneof![Just(Value::Route(Route::Blackhole)), Just(Value::Other("several".into()))];
    ((0..6_u8).prop_map(|n| Route::key(format!("10.244.{n}.0/24").parse().unwrap())), value)
}

fn owner(key: &Key) -> LeaseKey {
    LeaseKey::new(key.to_string())
}

fn wanted((key, value): (Key, Value)) -> (Key, Wanted) {
    (key, Wanted { value, owner: Owner::Peer(owner(&key)) })
}

fn any_act() -> impl Strategy<Value = Act> {
    let objects = || proptest::collection::vec(any_object(), 0..6);
    let change =
        |((key, value), is_wanted): (_, bool)| (owner(&key), Vec::from_iter(is_wanted.then_some((key, value))));
    prop_oneof![
        (any_object(), any::<bool>()).prop_map(|((key, value), held)| Act::Set(key, held.then_some(value))),
        any::<bool>().prop_map(Act::Retain),
        objects().prop_map(|objects| Act::Hold(objects.into_iter().collect())),
        objects().prop_map(|objects| Act::Want(objects.into_iter().map(wanted).collect())),
        proptest::collection::vec((any_object(), any::<bool>()), 0..3)
            .prop_map(move |changes| Act::Rewant(changes.into_iter().map(change).collect())),
    ]
}

/// The same on two plain maps.
fn act_plainly(act: Act, want: &mut Want, held: &mut BTreeMap<Key, Value>) {
    match act {
        Act::Set(key, value) => {
            held.remove(&key);
            held.extend(value.map(|value| (key, value)));
        }
        Act::Retain(odd) => held.retain(|_, value| odd == matches!(value, Value::Other(_))),
        Act::Hold(objects) => *held = objects.iter().map(|(key, value)| (*key, value.clone())).collect(),
        Act::Want(new) => *want = new,
        Act::Rewant(leases) => {
            want.retain(|key, _| !leases.contains_key(&owner(key)));
            want.extend(leases.into_values().flatten().map(wanted));
        }
    }
}

fn act(act: Act, objects: &mut Objects) {
    match act {
        Act::Set(key, value) => objects.set(key, value),
        Act::Retain(odd) => objects.retain(|_, value| odd == matches!(value, Value::Other(_))),
        Act::Hold(held) => objects.hold(held),
        Act::Want(want) => objects.want(want),
        Act::Rewant(leases) => objects.rewant(leases),
    }
}

proptest! {
    #[test]
    fn two_maps_kept_as_one(acts in proptest::collection::vec(any_act(), 0..12)) {
        let (mut objects, mut want, mut held) = (Objects::default(), Want::new(), BTreeMap::new());
        for one in acts {
            act_plainly(one.clone(), &mut want, &mut held);
            act(one, &mut objects);
            prop_assert_eq!(objects.wanted(), &want);
            prop_assert!(objects.iter().eq(held.iter()), "{objects:?}\n{held:?}");
            let keys: BTreeSet<&Key> = want.keys().chain(held.keys()).collect();
            prop_assert!(keys.iter().all(|key| objects.get(key) == held.get(key)));
            let both: Vec<_> = keys.into_iter().map(|key| (key, want.get(key), held.get(key))).collect();
            prop_assert_eq!(objects.side_by_side().collect::<Vec<_>>(), both.clone());
            let differ = both.into_iter().filter(|(_, wanted, held)| wanted.map(|wanted| &wanted.value) != *held);
            prop_assert_eq!(objects.differences().collect::<Vec<_>>(), differ.collect::<Vec<_>>());
        }
    }
}
