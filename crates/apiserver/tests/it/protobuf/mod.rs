//! Protobuf request bodies: captured from kubectl 1.32, and built by hand for kinds kubectl does not send.

use apiserver::protobuf::{DecodeError, MAGIC, decode_object};
use proptest::prelude::*;
use serde_json::{Value, json};

fn check(body: &[u8], expected: Value) {
    assert_eq!(decode_object(body).unwrap(), expected);
}

macro_rules! golden {
    ($($name:ident => $json:tt),* $(,)?) => {$(
        #[test]
        fn $name() {
            check(include_bytes!(concat!("golden/", stringify!($name), ".bin")), json!($json));
        }
    )*};
}

golden! {
    namespace => {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "blue"}},
    configmap => {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app", "namespace": "blue"},
        "data": {"colour": "red", "empty": ""}
    },
    configmap_binary => {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "raw", "namespace": "blue"},
        "binaryData": {"bin": "//4AeA=="}
    },
    secret => {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pw", "namespace": "blue"},
        "data": {"user": "YW5uYQ==", "pass": "Z2VoZWlt"}
    },
    serviceaccount => {
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot", "namespace": "blue"}
    },
    role => {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "reader", "namespace": "blue"},
        "rules": [{
            "verbs": ["get", "list", "watch"], "apiGroups": [""], "resources": ["configmaps", "secrets"],
            "resourceNames": ["app"]
        }]
    },
    clusterrole => {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "prober"},
        "rules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez"]}]
    },
    clusterrole_aggregate => {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "sum"},
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"team": "net"}}]}
    },
    rolebinding => {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "rb", "namespace": "blue"},
        "subjects": [
            {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "anna"},
            {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "ops"},
            {"kind": "ServiceAccount", "name": "robot", "namespace": "blue"}
        ],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    },
    clusterrolebinding => {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "crb"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "ops"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "prober"}
    },
    can_i => {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "namespace": "blue", "verb": "delete", "resource": "configmaps", "name": "app"
        }}
    },
    can_i_url => {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"nonResourceAttributes": {"path": "/healthz", "verb": "get"}}
    },
    can_i_list => {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "blue"}
    },
    whoami => {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"},
    token => {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": ["kcm"], "expirationSeconds": 3600}
    },
}

/// Emits fields for tests.
fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn bytes(number: u64, value: &[u8]) -> Vec<u8> {
    [
        varint(number << 3 | 2),
        varint(value.len() as u64),
        value.to_vec(),
    ]
    .concat()
}

fn int(number: u64, value: i64) -> Vec<u8> {
    [varint(number << 3), varint(value as u64)].concat()
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [
        MAGIC.to_vec(),
        bytes(1, &meta),
        bytes(2, raw),
        bytes(3, b""),
        bytes(4, b""),
    ]
    .concat()
}

#[test]
fn lease_keeps_zero_and_microseconds() {
    let time = [int(1, 1_763_809_445), int(2, 250_000_000)].concat();
    let spec = [
        bytes(1, b"holder"),
        int(2, 15),
        bytes(3, &time),
        bytes(4, &time),
        int(5, 0),
    ]
    .concat();
    let metadata = [bytes(1, b"l"), bytes(3, b"kube-system"), bytes(8, b"")].concat();
    let raw = [bytes(1, &metadata), bytes(2, &spec)].concat();
    check(
        &envelope("coordination.k8s.io/v1", "Lease", &raw),
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "l", "namespace": "kube-system"},
            "spec": {
                "holderIdentity": "holder", "leaseDurationSeconds": 15, "leaseTransitions": 0,
                "acquireTime": "2025-11-22T11:04:05.250000Z", "renewTime": "2025-11-22T11:04:05.250000Z"
            }
        }),
    );
}

#[test]
fn metadata_in_full() {
    let owner = [
        bytes(1, b"Machine"),
        bytes(3, b"m"),
        bytes(4, b"u-1"),
        bytes(5, b"compute.openkcm.dev/v1alpha1"),
        int(6, 1),
        int(7, 0),
    ]
    .concat();
    let fields = bytes(1, br#"{"f:data":{".":{},"f:a":{}}}"#);
    let entry = [
        bytes(1, b"kubectl"),
        bytes(2, b"Update"),
        bytes(3, b"v1"),
        bytes(4, &int(1, 1_763_809_445)),
        bytes(6, b"FieldsV1"),
        bytes(7, &fields),
        bytes(8, b"status"),
    ]
    .concat();
    let label = [bytes(1, b"k"), bytes(2, b"v")].concat();
    let metadata = [
        bytes(1, b"n"),
        int(7, 3),
        bytes(8, &int(1, 1_763_809_445)),
        int(10, 0),
        bytes(11, &label),
        bytes(13, &owner),
        bytes(14, b"a/b"),
        bytes(14, b"c/d"),
        bytes(17, &entry),
        // A field of the future.
        bytes(99, b"?"),
    ]
    .concat();
    check(
        &envelope(
            "v1",
            "ConfigMap",
            &[bytes(1, &metadata), int(4, 0)].concat(),
        ),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "immutable": false,
            "metadata": {
                "name": "n", "generation": 3, "creationTimestamp": "2025-11-22T11:04:05Z",
                "deletionGracePeriodSeconds": 0, "labels": {"k": "v"}, "finalizers": ["a/b", "c/d"],
                "ownerReferences": [{
                    "kind": "Machine", "name": "m", "uid": "u-1", "apiVersion": "compute.openkcm.dev/v1alpha1",
                    "controller": true, "blockOwnerDeletion": false
                }],
                "managedFields": [{
                    "manager": "kubectl", "operation": "Update", "apiVersion": "v1",
                    "time": "2025-11-22T11:04:05Z", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:data": {".": {}, "f:a": {}}}, "subresource": "status"
                }]
            }
        }),
    );
}

#[test]
fn events_of_both_groups() {
    let object = [bytes(1, b"Network"), bytes(2, b"default"), bytes(3, b"n1")].concat();
    let series = [int(1, 4), bytes(2, &int(1, 1_763_809_445))].concat();
    let core = [
        bytes(2, &object),
        bytes(3, b"Ready"),
        bytes(5, &bytes(1, b"apinetlet")),
        int(8, 4),
        bytes(11, &series),
    ]
    .concat();
    check(
        &envelope("v1", "Event", &core),
        json!({
            "apiVersion": "v1", "kind": "Event", "reason": "Ready", "count": 4,
            "involvedObject": {"kind": "Network", "namespace": "default", "name": "n1"},
            "source": {"component": "apinetlet"},
            "series": {"count": 4, "lastObservedTime": "2025-11-22T11:04:05.000000Z"}
        }),
    );
    let modern = [
        bytes(4, b"openkcm.dev/c"),
        bytes(8, &object),
        bytes(10, b"note"),
    ]
    .concat();
    check(
        &envelope("events.k8s.io/v1", "Event", &modern),
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "reportingController": "openkcm.dev/c",
            "regarding": {"kind": "Network", "namespace": "default", "name": "n1"}, "note": "note"
        }),
    );
}

#[test]
fn delete_options_of_any_group() {
    let preconditions = [bytes(1, b"u-1"), bytes(2, b"7")].concat();
    let raw = [
        int(1, 0),
        bytes(2, &preconditions),
        bytes(4, b"Foreground"),
        bytes(5, b"All"),
    ];
    for group in ["v1", "meta.k8s.io/v1", "networking.openkcm.dev/v1alpha1"] {
        check(
            &envelope(group, "DeleteOptions", &raw.concat()),
            json!({
                "apiVersion": group, "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                "preconditions": {"uid": "u-1", "resourceVersion": "7"},
                "propagationPolicy": "Foreground", "dryRun": ["All"]
            }),
        );
    }
}

#[test]
fn subject_review_with_extra() {
    let extra = [
        bytes(1, b"scopes"),
        bytes(2, &[bytes(1, b"a"), bytes(1, b"b")].concat()),
    ]
    .concat();
    let spec = [
        bytes(3, b"anna"),
        bytes(4, b"ops"),
        bytes(5, &extra),
        bytes(6, b"u"),
    ]
    .concat();
    check(
        &envelope(
            "authorization.k8s.io/v1",
            "SubjectAccessReview",
            &bytes(2, &spec),
        ),
        json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": "anna", "groups": ["ops"], "extra": {"scopes": ["a", "b"]}, "uid": "u"}
        }),
    );
}

#[test]
fn signing_request() {
    let spec = [
        bytes(1, b"PEM"),
        bytes(5, b"client auth"),
        bytes(7, b"openkcm.dev/x"),
        int(8, 600),
    ];
    check(
        &envelope(
            "certificates.k8s.io/v1",
            "CertificateSigningRequest",
            &bytes(2, &spec.concat()),
        ),
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "spec": {
                "request": "UEVN", "usages": ["client auth"], "signerName": "openkcm.dev/x", "expirationSeconds": 600
            }
        }),
    );
}

#[test]
fn json_inside_the_envelope() {
    let meta = [bytes(1, b"v1"), bytes(2, b"Anything")].concat();
    let body = [
        MAGIC.to_vec(),
        bytes(1, &meta),
        bytes(2, br#"{"a":1}"#),
        bytes(4, b"application/json"),
    ];
    check(
        &body.concat(),
        json!({"apiVersion": "v1", "kind": "Anything", "a": 1}),
    );
}

#[test]
fn bad_bodies() {
    let refused = |body: &[u8]| decode_object(body).unwrap_err();
    assert_eq!(refused(b"{}"), DecodeError::Magic);
    assert_eq!(refused(b"k8s"), DecodeError::Magic);
    assert!(matches!(
        refused(&envelope("v1", "Pod", b"")),
        DecodeError::Kind { .. }
    ));
    assert!(matches!(
        refused(&envelope("apps/v1", "Namespace", b"")),
        DecodeError::Kind { .. }
    ));
    let config_map = |raw: &[u8]| refused(&envelope("v1", "ConfigMap", raw));
    assert_eq!(config_map(&int(1, 7)), DecodeError::WireType("metadata"));
    assert_eq!(
        config_map(&bytes(1, &bytes(1, &[0xff]))),
        DecodeError::Utf8("name")
    );
    assert_eq!(
        config_map(&[0x0a, 0x05, 0x01]),
        DecodeError::Truncated("CONFIG_MAP")
    );
    assert_eq!(
        config_map(&[0xff; 11]),
        DecodeError::Truncated("CONFIG_MAP")
    );
    assert_eq!(config_map(&[0x0b]), DecodeError::Unsupported(3));
    let far = bytes(1, &bytes(8, &int(1, i64::MAX)));
    assert_eq!(config_map(&far), DecodeError::Time("creationTimestamp"));
}

proptest! {
    #[test]
    fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..6usize) {
        let kind = ["ConfigMap", "Secret", "Event", "Namespace", "DeleteOptions", "ServiceAccount"][kind];
        let _ = decode_object(&envelope("v1", kind, &raw));
        let _ = decode_object(&[&MAGIC[..], &raw].concat());
    }

    #[test]
    fn maps_come_back(data in proptest::collection::btree_map("[a-z]{1,8}", "[ -~]{0,20}", 0..10)) {
        let entries: Vec<u8> = data
            .iter()
            .flat_map(|(k, v)| bytes(2, &[bytes(1, k.as_bytes()), bytes(2, v.as_bytes())].concat()))
            .collect();
        let decoded = decode_object(&envelope("v1", "ConfigMap", &entries)).unwrap();
        let expected = if data.is_empty() { None } else { Some(json!(data)) };
        prop_assert_eq!(decoded.get("data").cloned(), expected);
    }
}
