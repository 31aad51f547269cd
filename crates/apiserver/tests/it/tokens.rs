//! Service account tokens: issued, reviewed, used, refused.

use apiserver::auth::token::{AUDIENCE, Account, Claims, ISSUER, TokenError, Tokens};
use apiserver::testing::{TestServer, spawn};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const SELF: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

fn claims() -> Claims {
    let account = Account {
        namespace: "ns".into(),
        name: "robot".into(),
        uid: "u-1".into(),
    };
    Claims {
        iss: ISSUER.into(),
        sub: account.user_name(),
        aud: vec![AUDIENCE.into()],
        exp: 2000,
        iat: 1000,
        nbf: 1000,
        account,
    }
}

#[test]
fn tokens_are_checked_in_full() {
    let tokens = Tokens::new(&[7; 32]);
    let token = tokens.issue(&claims()).unwrap();
    assert_eq!(tokens.verify(&token, 1500), Ok(claims()));
    assert_eq!(tokens.verify(&token, 2000), Err(TokenError::Expired));
    assert_eq!(tokens.verify(&token, 999), Err(TokenError::Early));
    assert_eq!(
        Tokens::new(&[8; 32]).verify(&token, 1500),
        Err(TokenError::Foreign)
    );
    let stranger = tokens
        .issue(&Claims {
            iss: "https://else".into(),
            ..claims()
        })
        .unwrap();
    assert_eq!(tokens.verify(&stranger, 1500), Err(TokenError::Foreign));
    // Every changed byte is noticed, and so is every cut.
    for at in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert_eq!(
            tokens.verify(&changed, 1500),
            Err(TokenError::Foreign),
            "{at}"
        );
        assert_eq!(
            tokens.verify(&token[..at], 1500),
            Err(TokenError::Foreign),
            "{at}"
        );
    }
    // The sender cannot choose the algorithm.
    let rest = token.split_once('.').unwrap().1;
    let none = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        r#"{"alg":"none"}"#,
    );
    assert_eq!(
        tokens.verify(&format!("{none}.{rest}"), 1500),
        Err(TokenError::Foreign)
    );
}

/// A client that shows a token, or the administrator's certificate.
async fn client(server: &TestServer, token: Option<&str>) -> kube::Client {
    let mut kubeconfig: kube::config::Kubeconfig =
        kube::config::Kubeconfig::from_yaml(&server.kubeconfig().unwrap()).unwrap();
    if let Some(token) = token {
        for user in &mut kubeconfig.auth_infos {
            user.auth_info = serde_json::from_value(json!({ "token": token })).unwrap();
        }
    }
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    kube::Client::try_from(config).unwrap()
}

async fn call(
    client: &kube::Client,
    method: Method,
    path: &str,
    body: Value,
) -> (StatusCode, Value) {
    let body = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(kube::client::Body::from(body));
    let response = client.send(request.unwrap()).await.unwrap();
    let code = response.status();
    let bytes = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap()
        .to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn post(client: &kube::Client, path: &str, body: Value) -> (StatusCode, Value) {
    call(client, Method::POST, path, body).await
}

#[tokio::test]
async fn a_service_account_lives_by_its_token() {
    let server = spawn().await.unwrap();
    let admin = client(&server, None).await;
    let account =
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "robot" } });
    assert_eq!(
        post(&admin, ACCOUNTS, account.clone()).await.0,
        StatusCode::CREATED
    );
    let path = format!("{ACCOUNTS}/robot/token");
    let request =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let (code, answer) = post(&admin, &path, request.clone()).await;
    assert_eq!(
        (code, &answer["kind"], &answer["spec"]["expirationSeconds"]),
        (StatusCode::CREATED, &json!("TokenRequest"), &json!(3600))
    );
    assert!(
        answer["status"]["expirationTimestamp"]
            .as_str()
            .unwrap()
            .ends_with('Z')
    );
    let token = answer["status"]["token"].as_str().unwrap().to_owned();

    // Whose is it?
    let review = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": { "token": token } });
    let (_, answer) = post(&admin, REVIEWS, review.clone()).await;
    assert_eq!(answer["status"]["authenticated"], json!(true), "{answer}");
    assert_eq!(
        answer["status"]["user"]["username"],
        json!("system:serviceaccount:default:robot")
    );
    let foreign = json!({ "spec": { "token": token, "audiences": ["else"] } });
    let (_, answer) = post(&admin, REVIEWS, foreign).await;
    assert_eq!(answer["status"]["authenticated"], json!(false), "{answer}");

    // It is an identity with the usual groups, and no rights of its own.
    let robot = client(&server, Some(&token)).await;
    let (code, answer) = post(
        &robot,
        SELF,
        json!({ "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1" }),
    )
    .await;
    assert_eq!(code, StatusCode::CREATED, "{answer}");
    let groups = &answer["status"]["userInfo"]["groups"];
    assert_eq!(
        groups,
        &json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
    let (code, _) = call(
        &robot,
        Method::GET,
        "/api/v1/namespaces/default/configmaps",
        Value::Null,
    )
    .await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    let (code, _) = post(&robot, &path, request.clone()).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "robot" },
        "subjects": [{ "kind": "ServiceAccount", "name": "robot", "namespace": "default" }],
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" }
    });
    let (code, answer) = post(
        &admin,
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        binding,
    )
    .await;
    assert_eq!(code, StatusCode::CREATED, "{answer}");
    let started = std::time::Instant::now();
    while call(
        &robot,
        Method::GET,
        "/api/v1/namespaces/default/configmaps",
        Value::Null,
    )
    .await
    .0 != StatusCode::OK
    {
        assert!(
            started.elapsed().as_secs() < 20,
            "the binding never took effect"
        );
    }

    // It dies with its account, and a namesake does not revive it.
    let (code, _) = call(
        &admin,
        Method::DELETE,
        &format!("{ACCOUNTS}/robot"),
        Value::Null,
    )
    .await;
    assert_eq!(code, StatusCode::OK);
    post(&admin, ACCOUNTS, account).await;
    while call(&robot, Method::GET, "/version", Value::Null).await.0 != StatusCode::UNAUTHORIZED {
        assert!(
            started.elapsed().as_secs() < 20,
            "the token outlives its account"
        );
    }
}

#[tokio::test]
async fn bad_token_requests() {
    let server = spawn().await.unwrap();
    let admin = client(&server, None).await;
    let request =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
    let (code, answer) = post(&admin, &format!("{ACCOUNTS}/ghost/token"), request).await;
    assert_eq!(
        (code, &answer["message"]),
        (
            StatusCode::NOT_FOUND,
            &json!("serviceaccounts \"ghost\" not found")
        )
    );
    let account =
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "robot" } });
    post(&admin, ACCOUNTS, account).await;
    let short = json!({ "spec": { "expirationSeconds": 10 } });
    let (code, answer) = post(&admin, &format!("{ACCOUNTS}/robot/token"), short).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    let stranger = client(&server, Some("a.b.c")).await;
    let (code, answer) = call(&stranger, Method::GET, "/version", Value::Null).await;
    assert_eq!(
        (code, &answer["reason"]),
        (StatusCode::UNAUTHORIZED, &json!("Unauthorized"))
    );
}

#[tokio::test]
async fn a_bootstrap_token_lets_in_who_has_nothing_yet() {
    let server = spawn().await.unwrap();
    let admin = client(&server, None).await;
    let secret = |id: &str, changes: Value| {
        let mut data = json!({
            "token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:apinet-openkcm-dev:apinetlets",
        });
        for (key, value) in changes.as_object().unwrap() {
            data[key] = value.clone();
        }
        json!({
            "metadata": { "name": format!("bootstrap-token-{id}") }, "type": "bootstrap.kubernetes.io/token",
            "stringData": data,
        })
    };
    let path = "/api/v1/namespaces/kube-system/secrets";
    for (id, changes, user) in [
        ("good00", json!({}), Some("system:bootstrap:good00")),
        (
            "later0",
            json!({ "expiration": "2999-01-01T00:00:00Z" }),
            Some("system:bootstrap:later0"),
        ),
        (
            "over00",
            json!({ "expiration": "2020-01-01T00:00:00Z" }),
            None,
        ),
        ("never0", json!({ "expiration": "tomorrow" }), None),
        (
            "other0",
            json!({ "token-secret": "fedcba9876543210" }),
            None,
        ),
        (
            "usage0",
            json!({ "usage-bootstrap-authentication": "false" }),
            None,
        ),
        (
            "group0",
            json!({ "auth-extra-groups": "system:masters" }),
            None,
        ),
        ("id0000", json!({ "token-id": "abcdef" }), None),
    ] {
        let (code, made) = post(&admin, path, secret(id, changes)).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        let newcomer = client(&server, Some(&format!("{id}.0123456789abcdef"))).await;
        let (code, me) = post(&newcomer, SELF, json!({})).await;
        let expected = user.map_or(StatusCode::UNAUTHORIZED, |_| StatusCode::CREATED);
        assert_eq!(code, expected, "{id}: {me}");
        if let Some(user) = user {
            assert_eq!(me["status"]["userInfo"]["username"], user);
            let groups = [
                "system:bootstrappers",
                "system:bootstrappers:apinet-openkcm-dev:apinetlets",
                "system:authenticated",
            ];
            assert_eq!(me["status"]["userInfo"]["groups"], json!(groups));
            let (code, _) = call(&newcomer, Method::GET, path, Value::Null).await;
            assert_eq!(code, StatusCode::FORBIDDEN);
        }
    }
}
