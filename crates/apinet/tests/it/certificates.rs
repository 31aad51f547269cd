//! Certificates that the lets ask for themselves, against the real server: only what has exactly the shape of a let's client
//! certificate, from somebody who may ask for it, is approved; what was approved is signed and works.

use std::time::{Duration, Instant};

use api::names::{certificate, identity};
use apinet::{CertificateApprovalController, recognize};
use apiserver::{
    pki::{Identity, KeyAndCertificate, kubeconfig},
    testing::{TestServer, spawn},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use controller::{Cluster, Options, Runner};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use kube::{
    Api, Client,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::object;

const DEADLINE: Duration = Duration::from_secs(60);
const USAGES: [&str; 2] = ["digital signature", "client auth"];

struct Wish<'a> {
    user: &'a str,
    group: &'a str,
    usages: &'a [&'a str],
    signer: &'a str,
    dns: Option<&'a str>,
}

const APINETLET: Wish<'static> = Wish {
    user: "apinet.openkcm.dev:system:apinetlet:openkcm-net-system",
    group: identity::APINETLETS,
    usages: &USAGES,
    signer: certificate::CLIENT_SIGNER,
    dns: None,
};

impl Wish<'_> {
    /// The request as a document, and the key it is for.
    fn request(&self, name: &str) -> (Value, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, self.user);
        params
            .distinguished_name
            .push(DnType::OrganizationName, self.group);
        if let Some(dns) = self.dns {
            let name = dns.try_into().expect("a DNS name");
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let request = params.serialize_request(&key).expect("a request");
        let pem = request.pem().expect("PEM");
        let document = json!({
            "metadata": { "name": name },
            "spec": {
                "request": STANDARD.encode(pem), "signerName": self.signer, "usages": self.usages,
                "expirationSeconds": 3600,
            },
        });
        (document, key)
    }

    fn spec(&self, requester: &str) -> CertificateSigningRequestSpec {
        let (document, _) = self.request("x");
        let mut request: CertificateSigningRequest = object(document);
        request.spec.username = Some(requester.to_owned());
        request.spec
    }
}

#[test]
fn only_the_exact_shape_of_a_let_is_recognized() {
    let new = "system:bootstrap:abcdef";
    let three = ["digital signature", "key encipherment", "client auth"];
    let metalnetlet = Wish {
        user: "apinet.openkcm.dev:system:metalnetlet:p1",
        group: identity::METALNETLETS,
        ..APINETLET
    };
    for (label, wish, requester, expected) in [
        ("apinetlet", APINETLET, new, true),
        ("metalnetlet", metalnetlet, new, true),
        (
            "key encipherment as well",
            Wish {
                usages: &three,
                ..APINETLET
            },
            new,
            true,
        ),
        ("renewal", APINETLET, APINETLET.user, true),
        (
            "another let's name",
            APINETLET,
            "apinet.openkcm.dev:system:apinetlet:other",
            false,
        ),
        (
            "group of the administrators",
            Wish {
                group: "system:masters",
                ..APINETLET
            },
            new,
            false,
        ),
        (
            "group of another kind",
            Wish {
                group: identity::METALNETLETS,
                ..APINETLET
            },
            new,
            false,
        ),
        (
            "name of nobody",
            Wish {
                user: "somebody",
                ..APINETLET
            },
            new,
            false,
        ),
        (
            "empty name",
            Wish {
                user: "apinet.openkcm.dev:system:apinetlet:",
                ..APINETLET
            },
            new,
            false,
        ),
        (
            "server",
            Wish {
                usages: &["digital signature", "server auth"],
                ..APINETLET
            },
            new,
            false,
        ),
        (
            "too few usages",
            Wish {
                usages: &["client auth"],
                ..APINETLET
            },
            new,
            false,
        ),
        (
            "one usage more",
            Wish {
                usages: &["digital signature", "client auth", "server auth"],
                ..APINETLET
            },
            new,
            false,
        ),
        (
            "alternative name",
            Wish {
                dns: Some("api.example"),
                ..APINETLET
            },
            new,
            false,
        ),
        (
            "other signer",
            Wish {
                signer: "example.com/signer",
                ..APINETLET
            },
            new,
            false,
        ),
    ] {
        assert_eq!(
            recognize(&wish.spec(requester)).is_some(),
            expected,
            "{label}"
        );
    }
    let mut broken = APINETLET.spec(new);
    broken.request.0 =
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".to_vec();
    assert!(recognize(&broken).is_none());
}

async fn client_of(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("a kubeconfig");
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("a config")).expect("a client")
}

async fn client_as(server: &TestServer, user: &str, group: &str) -> Client {
    let identity = Identity {
        user: user.to_owned(),
        groups: vec![group.to_owned()],
    };
    client_of(&server.kubeconfig_for(&identity).expect("a kubeconfig")).await
}

async fn ask(client: &Client, wish: &Wish<'_>, name: &str) -> KeyPair {
    let (document, key) = wish.request(name);
    let request: CertificateSigningRequest = object(document);
    let requests = Api::<CertificateSigningRequest>::all(client.clone());
    let made = requests.create(&PostParams::default(), &request).await;
    made.expect("the request is taken");
    key
}

async fn issued(client: &Client, name: &str) -> String {
    let requests = Api::<CertificateSigningRequest>::all(client.clone());
    let started = Instant::now();
    loop {
        let request = requests.get(name).await.expect("the request");
        if let Some(certificate) = request.status.and_then(|status| status.certificate) {
            return String::from_utf8(certificate.0).expect("PEM");
        }
        assert!(started.elapsed() < DEADLINE, "{name} is not signed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_let_gets_its_certificate_and_nobody_else_does() {
    let server = spawn().await.expect("the server starts");
    let (user, group) = identity::CONTROLLER_MANAGER;
    let manager = client_as(&server, user, group).await;
    let mut runner = Runner::new("apinet", Cluster::new(manager.clone()));
    let controller = CertificateApprovalController::new(manager);
    runner.controller(std::sync::Arc::new(controller), Options::default());
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { runner.run(stop).await.expect("the controllers run") });

    let bootstrap = certificate::APINETLETS_BOOTSTRAP;
    let newcomer = client_as(&server, "system:bootstrap:abcdef", bootstrap).await;
    let (user, group) = identity::ADMIN;
    let admin = client_as(&server, user, group).await;
    let other = Wish {
        user: "apinet.openkcm.dev:system:metalnetlet:p1",
        group: identity::METALNETLETS,
        ..APINETLET
    };
    let serving = Wish {
        usages: &["digital signature", "server auth"],
        ..APINETLET
    };
    // These three come first and stay without a decision: a right for another let, no right of this kind but every other one
    // (the administrator may create anything, so he asks for the wrong shape), and a shape that is not a let's.
    ask(&newcomer, &other, "not-mine").await;
    ask(&admin, &serving, "serving").await;
    ask(&newcomer, &serving, "not-a-client").await;
    let key = ask(&newcomer, &APINETLET, "mine").await;
    let certificate_pem = issued(&newcomer, "mine").await;
    let requests = Api::<CertificateSigningRequest>::all(admin.clone());
    for name in ["not-mine", "serving", "not-a-client"] {
        let request = requests.get(name).await.expect("the request");
        assert!(
            request
                .status
                .is_none_or(|status| status.conditions.is_none_or(|all| all.is_empty())),
            "{name}"
        );
    }

    // The certificate opens what the role of apinetlets opens.
    let pair = KeyAndCertificate {
        certificate_pem,
        key_pem: key.serialize_pem(),
    };
    let ca = server.running.ca.certificate_pem();
    let apinetlet = client_of(&kubeconfig(&server.url, ca, "apinetlet", &pair)).await;
    let networks = Api::<api::apinet::Network>::namespaced(apinetlet.clone(), crate::NS);
    networks.list(&Default::default()).await.expect("listed");

    // It renews itself; the name of another it does not get.
    ask(&apinetlet, &APINETLET, "renewal").await;
    issued(&apinetlet, "renewal").await;
    let stranger = Wish {
        user: "apinet.openkcm.dev:system:apinetlet:other",
        ..APINETLET
    };
    ask(&apinetlet, &stranger, "stranger").await;
    ask(&apinetlet, &APINETLET, "after").await;
    issued(&apinetlet, "after").await;
    let request = requests.get("stranger").await.expect("the request");
    assert!(
        request
            .status
            .is_none_or(|status| status.certificate.is_none())
    );
    assert_eq!(request.spec.username.as_deref(), Some(APINETLET.user));
}
