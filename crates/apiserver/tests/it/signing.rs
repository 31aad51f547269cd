//! Certificate signing requests: what the server writes down, who may decide, what is signed.

use crate::support::{client, client_as, eventually, get, post, put, server};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SIGNER: &str = "kubernetes.io/kube-apiserver-client";

fn pem(user: &str, group: &str) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if !group.is_empty() {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    let key = KeyPair::generate().expect("a key");
    let request = params.serialize_request(&key).expect("a request");
    request.pem().expect("PEM")
}

fn document(name: &str, pem: &str, usages: &[&str]) -> Value {
    json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": { "name": name },
        "spec": { "request": STANDARD.encode(pem), "signerName": SIGNER, "usages": usages },
    })
}

fn good(name: &str) -> Value {
    document(name, &pem("jane", "devs"), &["client auth"])
}

fn approved(mut request: Value, word: &str) -> Value {
    request["status"]["conditions"] =
        json!([{ "type": word, "status": "True", "reason": "ByHand", "message": "looked at" }]);
    request
}

fn fields(failure: &Value) -> Vec<String> {
    let causes = failure["details"]["causes"].as_array().cloned();
    let causes = causes.unwrap_or_default();
    let field = |cause: &Value| cause["field"].as_str().unwrap_or_default().to_owned();
    causes.iter().map(field).collect()
}

#[tokio::test]
async fn wrong_requests_are_refused_with_all_their_fields() {
    let server = server().await;
    let admin = client(&server).await;
    let wrong = json!({
        "metadata": { "name": "x" },
        "spec": {
            "request": STANDARD.encode("nothing"), "signerName": "nobody", "usages": ["client auth", "flying", "client auth"],
            "expirationSeconds": 10,
        },
    });
    let (code, failure) = post(&admin, REQUESTS, &wrong).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{failure}");
    let fields = fields(&failure);
    for field in [
        "spec.expirationSeconds",
        "spec.request",
        "spec.signerName",
        "spec.usages[1]",
        "spec.usages[2]",
    ] {
        assert!(
            fields.iter().any(|known| known == field),
            "{field}: {failure}"
        );
    }
    let masters = document("x", &pem("jane", "system:masters"), &["client auth"]);
    let (code, failure) = post(&admin, REQUESTS, &masters).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{failure}");
}

#[tokio::test]
async fn the_server_writes_down_who_asks_and_keeps_what_was_asked() {
    let server = server().await;
    let admin = client(&server).await;
    let (code, _) = post(
        &admin,
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        &json!({ "metadata": { "name": "asker" }, "rules": [{
            "apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status"],
            "verbs": ["*"],
        }]}),
    )
    .await;
    assert_eq!(code, StatusCode::CREATED);
    let (code, _) = post(
        &admin,
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        &json!({
            "metadata": { "name": "asker" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "asker" },
            "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "askers" }],
        }),
    )
    .await;
    assert_eq!(code, StatusCode::CREATED);
    let jane = client_as(&server, "jane", &["askers"]).await;

    let mut lie = approved(good("mine"), "Approved");
    lie["spec"]["username"] = json!("openkcm:admin");
    lie["spec"]["groups"] = json!(["system:masters"]);
    lie["spec"]["uid"] = json!("1");
    let made = eventually("the role holds", async || {
        let (code, made) = post(&jane, REQUESTS, &lie).await;
        (code == StatusCode::CREATED).then_some(made)
    })
    .await;
    assert_eq!(made["spec"]["username"], "jane");
    assert_eq!(
        made["spec"]["groups"],
        json!(["askers", "system:authenticated"])
    );
    assert_eq!(made["spec"]["uid"], Value::Null);
    assert_eq!(made["status"], Value::Null);

    let path = format!("{REQUESTS}/mine");
    let mut other = made.clone();
    other["spec"]["usages"] = json!(["server auth"]);
    let (code, failure) = put(&jane, &path, &other).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{failure}");

    // The right to write the subresource is not the right to decide about this signer.
    let approval = format!("{path}/approval");
    let (code, failure) = put(&jane, &approval, &approved(made.clone(), "Approved")).await;
    assert_eq!(code, StatusCode::FORBIDDEN, "{failure}");
    assert!(
        failure["message"]
            .as_str()
            .unwrap_or_default()
            .contains("signerName"),
        "{failure}"
    );
    // Nor does the status make a decision, whoever writes it.
    let status = format!("{path}/status");
    let (code, after) = put(&admin, &status, &approved(made.clone(), "Approved")).await;
    assert_eq!(code, StatusCode::OK, "{after}");
    assert_eq!(after["status"]["conditions"], Value::Null, "{after}");
    let mut forged = after.clone();
    forged["status"]["certificate"] = json!(STANDARD.encode("forged"));
    let (code, failure) = put(&jane, &status, &forged).await;
    assert_eq!(code, StatusCode::FORBIDDEN, "{failure}");
    let (code, after) = put(&admin, &approval, &forged).await;
    assert_eq!(code, StatusCode::OK, "{after}");
    assert_eq!(after["status"]["certificate"], Value::Null, "{after}");
}

#[tokio::test]
async fn what_is_approved_is_signed_and_decisions_stay() {
    let server = server().await;
    let admin = client(&server).await;
    for name in ["yes", "no", "serving"] {
        let request = match name {
            "serving" => document(name, &pem("jane", "devs"), &["server auth"]),
            name => good(name),
        };
        let (code, made) = post(&admin, REQUESTS, &request).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        let word = if name == "no" { "Denied" } else { "Approved" };
        let path = format!("{REQUESTS}/{name}/approval");
        let (code, decided) = put(&admin, &path, &approved(made, word)).await;
        assert_eq!(code, StatusCode::OK, "{decided}");
        let condition = &decided["status"]["conditions"][0];
        assert!(condition["lastUpdateTime"].is_string(), "{decided}");
        assert!(condition["lastTransitionTime"].is_string(), "{decided}");
    }
    let certificate = eventually("signed", async || {
        let (_, request) = get(&admin, &format!("{REQUESTS}/yes")).await;
        request["status"]["certificate"].as_str().map(str::to_owned)
    })
    .await;
    let pem = STANDARD.decode(certificate).expect("base64");
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
    let parsed = block.parse_x509().expect("a certificate");
    assert_eq!(parsed.subject().to_string(), "CN=jane, O=devs");
    assert!(!parsed.is_ca());
    let usage = parsed
        .extended_key_usage()
        .expect("readable")
        .expect("there");
    assert!(usage.value.client_auth && !usage.value.server_auth);

    let failed = eventually("refused by the signer", async || {
        let (_, request) = get(&admin, &format!("{REQUESTS}/serving")).await;
        let all = request["status"]["conditions"].as_array()?.clone();
        all.iter().find(|c| c["type"] == "Failed").cloned()
    })
    .await;
    assert_eq!(failed["reason"], "SignerValidationFailure");

    let (_, denied) = get(&admin, &format!("{REQUESTS}/no")).await;
    assert_eq!(denied["status"]["certificate"], Value::Null);
    let path = format!("{REQUESTS}/no/approval");
    let (code, failure) = put(&admin, &path, &approved(denied, "Approved")).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{failure}");
    let (code, table) = table(&admin).await;
    assert_eq!(code, StatusCode::OK);
    let row = |name: &str| {
        let rows = table["rows"].as_array().cloned().unwrap_or_default();
        let found = rows.into_iter().find(|row| row["cells"][0] == name);
        found.map(|row| row["cells"][5].clone())
    };
    assert_eq!(row("yes"), Some(json!("Approved,Issued")), "{table}");
    assert_eq!(row("no"), Some(json!("Denied")), "{table}");
}

async fn table(client: &kube::Client) -> (StatusCode, Value) {
    let request = http::Request::builder()
        .method(Method::GET)
        .uri(REQUESTS)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let request = request
        .body(kube::client::Body::empty())
        .expect("a request");
    let response = client.send(request).await.expect("an answer");
    let code = response.status();
    let bytes = http_body_util::BodyExt::collect(response.into_body())
        .await
        .expect("a body")
        .to_bytes();
    (code, serde_json::from_slice(&bytes).expect("JSON"))
}
