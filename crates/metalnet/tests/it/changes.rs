//! Writes to the API as they go over the wire.

use metalnet::agent::Input;
use metalnet::model::{Meta, ObjectKey};
use metalnet::objects::Change;
use metalnet::plan::ops::ApiOp;

use crate::sim::{Sim, key, spec, uid};

#[test]
fn a_list_of_finalizers_is_replaced_only_at_the_version_that_was_read() {
    let meta = Box::new(Meta {
        key: ObjectKey {
            namespace: "metalnet-system".to_owned(),
            name: "n".to_owned(),
        },
        uid: uid("u"),
        generation: 1,
        resource_version: "4711".to_owned(),
        finalizers: vec!["of-another-hypervisor".to_owned()],
        deleting: false,
    });
    let finalizers = vec!["of-another-hypervisor".to_owned(), "mine".to_owned()];
    for op in [
        ApiOp::NicFinalizers {
            meta: meta.clone(),
            finalizers: finalizers.clone(),
        },
        ApiOp::NetworkFinalizers {
            meta: meta.clone(),
            finalizers: finalizers.clone(),
        },
        ApiOp::BalancerFinalizers {
            meta: meta.clone(),
            finalizers: finalizers.clone(),
        },
    ] {
        let change = Change::of(&op).unwrap();
        assert_eq!(
            change.body.to_string(),
            r#"{"metadata":{"finalizers":["of-another-hypervisor","mine"],"resourceVersion":"4711"}}"#
        );
        assert!(!change.status);
    }
}

/// Hypervisors that start to use a network in one moment write one list.
#[test]
fn the_finalizer_of_another_hypervisor_is_not_lost() {
    const OTHER: &str = "networking.metalnet.openkcm.dev/network-h2";
    let mut sim = Sim::started(2);
    sim.add_network("net", 200, &[]);
    sim.settle();
    // The other one was faster, and we have not heard of it yet.
    let network = sim.networks.get_mut(&key("net")).unwrap();
    network.meta.finalizers.push(OTHER.to_owned());
    network.meta.resource_version = "4711".to_owned();
    let news = network.clone();
    sim.set_nic("a", "net", spec("10.0.0.1", "", &[]));
    sim.settle();
    sim.input(Input::Network(Box::new(news)));
    sim.settle();
    assert_eq!(
        sim.networks[&key("net")].meta.finalizers,
        [OTHER, "networking.metalnet.openkcm.dev/network-h1"]
    );
}
