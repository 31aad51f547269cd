//! Derived names, provider ids, spelling of groups.

use api::ids::{self, NetworkInterfaceProviderId, NetworkProviderId, Origin};
use api::meta::{Ip, IpPrefix, ObjectMeta};

#[test]
fn names_of_provider_interfaces_follow_the_published_vectors() {
    let check = |machine: &str, nic: &str, want: &str| {
        assert_eq!(ids::apinet_nic_name(machine, nic), want);
    };
    check("m1", "nic1", "309241fd-903f-5de3-a3cc-3c29733035ab");
    check(
        "7d1f4c1e-8f6a-4c57-9d3b-0e0a6a1f2b3c",
        "primary",
        "c800d954-e1bc-5adc-b9ae-d8a52c596720",
    );
}

#[test]
fn provider_ids_round_trip_and_reject_other_texts() {
    let text = "openkcm-net://openkcm-net-system/15e43205/11621310/292f19b4";
    let id: NetworkProviderId = text.parse().unwrap();
    assert_eq!(
        (id.id.as_str(), id.to_string().as_str()),
        ("11621310", text)
    );
    let nic = "openkcm-net://openkcm-net-system/nic/lab.node-1/uid";
    let id: NetworkInterfaceProviderId = nic.parse().unwrap();
    assert_eq!(
        (id.node.as_str(), id.to_string().as_str()),
        ("lab.node-1", nic)
    );
    assert!("OpenKCM-net://a/b/1/c".parse::<NetworkProviderId>().is_ok());
    for bad in [
        "",
        "a/b/c/d",
        "openkcm-net://a/b/c",
        "openkcm-net://a/b/c/d/e",
        "openkcm-net://a//c/d",
    ] {
        assert!(bad.parse::<NetworkProviderId>().is_err(), "{bad}");
    }
    assert!(
        "openkcm-net://a/b/No_Node/d"
            .parse::<NetworkInterfaceProviderId>()
            .is_err()
    );
}

#[test]
fn the_spelling_of_the_documents_is_accepted() {
    let check = |given: &str, want: &str| assert_eq!(ids::canonical_api_version(given), want);
    check(
        "networking.OpenKCM.dev/v1alpha1",
        "networking.openkcm.dev/v1alpha1",
    );
    check(
        "core.apinet.OPENKCM.dev/v1alpha1",
        "core.apinet.openkcm.dev/v1alpha1",
    );
    check(
        "networking.openkcm.dev/v1alpha1",
        "networking.openkcm.dev/v1alpha1",
    );
    check("networking.K8s.io/v1", "networking.K8s.io/v1");
    check("v1", "v1");
}

#[test]
fn addresses_and_prefixes_are_parsed_strictly_and_printed_canonically() {
    let ip = |text: &str| text.parse::<Ip>().map(|ip| ip.to_string()).ok();
    assert_eq!(ip("10.0.0.1").as_deref(), Some("10.0.0.1"));
    assert_eq!(ip("2001:DB8:0:0::1").as_deref(), Some("2001:db8::1"));
    assert_eq!(ip("::ffff:1.2.3.4").as_deref(), Some("::ffff:1.2.3.4"));
    for bad in ["010.0.0.1", "10.0.0", "", "10.0.0.1/32", "1.2.3.4 "] {
        assert_eq!(ip(bad), None, "{bad}");
    }
    let prefix = |text: &str| {
        text.parse::<IpPrefix>()
            .map(|prefix| prefix.to_string())
            .ok()
    };
    assert_eq!(
        prefix("10.0.0.5/24").as_deref(),
        Some("10.0.0.5/24"),
        "host bits stay"
    );
    for bad in [
        "10.0.0.0",
        "10.0.0.0/33",
        "10.0.0.0/+8",
        "10.0.0.0/08",
        "10.0.0.0/",
    ] {
        assert_eq!(prefix(bad), None, "{bad}");
    }
    let [wide, narrow]: [IpPrefix; 2] = ["10.0.0.9/8", "10.2.0.0/16"].map(|t| t.parse().unwrap());
    assert!(wide.contains(narrow) && !narrow.contains(wide) && narrow.overlaps(wide));
}

#[test]
fn labels_of_addresses_are_legal_label_values() {
    for text in ["10.0.0.1", "::1", "2001:db8::", "::", "2001:db8::1"] {
        let label = ids::ip_label(text.parse().unwrap());
        assert_eq!(
            api::validate::name::label_value(&label),
            None,
            "{text} gives {label}"
        );
    }
    assert_eq!(ids::ip_label("2001:db8::1".parse().unwrap()), "2001-db8--1");
}

#[test]
fn origin_marks_round_trip() {
    let origin = Origin {
        namespace: "shop".into(),
        name: "n".repeat(100),
        uid: "u1".into(),
    };
    let base = api::names::origin::NETWORK;
    let meta = ObjectMeta {
        labels: Some(origin.labels(base)),
        annotations: Some(origin.annotations(base)),
        ..ObjectMeta::default()
    };
    assert_eq!(Origin::of(&meta, base), Some(origin));
    assert_eq!(Origin::of(&meta, api::names::origin::VIRTUAL_IP), None);
}

#[test]
fn quantities_are_exact() {
    let check = |text: &str, want: Option<i128>| {
        assert_eq!(api::quantity::parse(text), want, "{text}");
    };
    check("1", Some(1000));
    check("500m", Some(500));
    check("1.5Gi", Some(1_610_612_736_000));
    check("1e3", Some(1_000_000));
    check("0", Some(0));
    check("-2k", Some(-2_000_000));
    check("1u", Some(1));
    for bad in ["", "Gi", "1Xi", "1.2.3", "one", "--1", "1e99"] {
        check(bad, None);
    }
}

#[test]
fn names_of_allocations_are_names_and_differ_by_request() {
    let name = |prefix: &str, uid: &str, request: &str| ids::allocation_name(prefix, uid, request);
    let one = name("shop", "u", "24/0");
    assert!(one.starts_with("shop-") && one.len() == 10, "{one}");
    assert_eq!(one, name("shop", "u", "24/0"));
    for other in [name("shop", "v", "24/0"), name("shop", "u", "24/1")] {
        assert_ne!(one, other);
    }
    // Cut in the middle of a label, and right behind a dot.
    for long in [
        "a".repeat(253),
        format!("{}.{}", "a".repeat(246), "b".repeat(6)),
    ] {
        let name = name(&long, "u", "24/0");
        assert_eq!(api::validate::dns_subdomain(&name), None, "{name}");
    }
}
