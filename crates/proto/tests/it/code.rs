//! The table of status codes.

use proto::code;

#[test]
fn names_follow_codes() {
    for (value, name) in [
        (0, Some("Success")),
        (101, Some("BAD_REQUEST")),
        (201, Some("NOT_FOUND")),
        (205, Some("NO_VM")),
        (214, Some("RTE_RULE_DEL")),
        (301, Some("ROUTE_EXISTS")),
        (341, Some("SNAT_NO_DATA")),
        (383, Some("PORT_METER")),
        (402, Some("VM_HANDLE")),
        (441, Some("NO_DROP_SUPPORT")),
        (1, None),
        (999, None),
    ] {
        assert_eq!(code::name(value), name, "code {value}");
    }
    assert!(
        code::ALL.is_sorted_by(|a, b| a.0 < b.0),
        "binary search needs ascending codes"
    );
    assert_eq!(code::ALL.len(), 41);
}
