//! Who is let in by a certificate, and who is not.

use crate::client::{Client, Credentials};
use crate::support::server;
use apiserver::pki::{Ca, Identity, KeyAndCertificate, kubeconfig};
use apiserver::testing::{TestServer, admin};
use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(86_400);

/// The answer's code, or nothing when the connection is refused.
async fn code(server: &TestServer, pair: &KeyAndCertificate) -> Option<u16> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config");
    let ca = server.running.ca.certificate_pem();
    let text = kubeconfig(&server.url, ca, "test", pair);
    std::fs::write(&path, text).expect("a file");
    let credentials = Credentials::read(&path).expect("our kubeconfig");
    let mut client = Client::connect(&credentials).await.ok()?;
    let answer = client.get("/api/v1/namespaces").await;
    Some(answer.ok()?.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_valid_client_certificates_of_the_region_are_let_in() {
    let server = server().await;
    let now = SystemTime::now();
    let ca = &server.running.ca;
    let (other, _) = Ca::create(now).expect("a CA");
    let nobody = Identity {
        user: "nobody".into(),
        groups: Vec::new(),
    };
    let good = ca.issue_client(&admin(), now, DAY);
    let powerless = ca.issue_client(&nobody, now, DAY);
    let foreign = other.issue_client(&admin(), now, DAY);
    let expired = ca.issue_client(&admin(), now - 3 * DAY, DAY);
    let future = ca.issue_client(&admin(), now + 3 * DAY, DAY);
    let serving = ca.issue_server(&["openkcm:admin".to_owned()], now, DAY);
    for (label, pair, expected) in [
        ("good", good, Some(200)),
        ("nobody", powerless, Some(403)),
        ("of another region", foreign, None),
        ("expired", expired, None),
        ("not yet valid", future, None),
        ("made for serving", serving, None),
    ] {
        let pair = pair.expect("a certificate");
        assert_eq!(code(&server, &pair).await, expected, "{label}");
    }
}
