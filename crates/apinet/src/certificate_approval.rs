//! CertificateSigningRequest: approves what an apinetlet or metalnetlet asks for itself, and nothing else.
//!
//! A request is approved if it has exactly the shape of such a let's client certificate *and* the API server says that whoever asks
//! may create the let's virtual subresource (`certificatesigningrequests/apinetletclient`, `…/metalnetletclient`). A let that is
//! known already may renew its own name only. Every other request is left to people and other approvers.

use api::csr::CertificateRequest;
use api::names::{certificate, identity};
use async_trait::async_trait;
use controller::{Act, Class, Controller, Error, Key, Op, Plan, Source, Watch, World, object};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

/// Uses of a let's key. RSA keys also encipher keys, others cannot.
const USAGES: [&str; 2] = ["digital signature", "client auth"];
const KEY_ENCIPHERMENT: &str = "key encipherment";

/// One kind of let.
#[derive(Clone, Copy, Debug)]
pub struct Recognizer {
    group: &'static str,
    user: fn(&str) -> String,
    subresource: &'static str,
}

/// The lets whose requests are approved.
pub const RECOGNIZERS: [Recognizer; 2] = [
    Recognizer {
        group: identity::APINETLETS,
        user: identity::apinetlet,
        subresource: certificate::APINETLET_CLIENT,
    },
    Recognizer {
        group: identity::METALNETLETS,
        user: identity::metalnetlet,
        subresource: certificate::METALNETLET_CLIENT,
    },
];

/// The one user and the one group of a request that wishes for nothing else.
fn subject(pem: &[u8]) -> Option<(String, String)> {
    let CertificateRequest {
        common_names,
        organizations,
        has_alternative_names: false,
    } = CertificateRequest::parse(pem).ok()?
    else {
        return None;
    };
    let [user] = <[String; 1]>::try_from(common_names).ok()?;
    let [group] = <[String; 1]>::try_from(organizations).ok()?;
    Some((user, group))
}

impl Recognizer {
    /// Whether a request asks for a certificate of this kind of let, which the one who asks could be.
    fn recognizes(&self, spec: &CertificateSigningRequestSpec) -> bool {
        let Some((user, group)) = subject(&spec.request.0) else {
            return false;
        };
        let prefix = (self.user)("");
        let named = user
            .strip_prefix(&prefix)
            .is_some_and(|rest| !rest.is_empty());
        let usages = spec.usages.as_deref().unwrap_or_default();
        let has = |usage: &str| usages.iter().any(|given| given == usage);
        let exact = USAGES.iter().all(|usage| has(usage))
            && usages.len() == USAGES.len() + usize::from(has(KEY_ENCIPHERMENT));
        let requester = spec.username.as_deref().unwrap_or_default();
        let own = !requester.starts_with(&prefix) || requester == user;
        spec.signer_name == certificate::CLIENT_SIGNER
            && group == self.group
            && named
            && exact
            && own
    }
}

/// The kind of let that a request is for.
pub fn recognize(spec: &CertificateSigningRequestSpec) -> Option<&'static Recognizer> {
    RECOGNIZERS.iter().find(|known| known.recognizes(spec))
}

/// Ask whether the requester may, and approve if so.
#[derive(Clone, Debug)]
struct Decide {
    request: CertificateSigningRequest,
    subresource: &'static str,
}

pub struct CertificateApprovalController {
    client: Client,
}

impl CertificateApprovalController {
    pub fn new(client: Client) -> CertificateApprovalController {
        CertificateApprovalController { client }
    }

    async fn decide(&self, decide: &Decide) -> Result<(), kube::Error> {
        let name = object::name(&decide.request);
        let spec = &decide.request.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some(certificate::GROUP.into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(decide.subresource.into()),
                    verb: Some("create".into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &review).await?;
        let status = review.status.unwrap_or_default();
        if !status.allowed {
            let who = spec.username.as_deref().unwrap_or_default();
            return Err(kube::Error::Service(
                format!(
                    "{who} may not create certificatesigningrequests/{}",
                    decide.subresource
                )
                .into(),
            ));
        }
        // The version says that this is the request that was looked at.
        let approval = json!({
            "metadata": { "resourceVersion": decide.request.metadata.resource_version },
            "status": { "conditions": [{
                "type": "Approved", "status": "True", "reason": "AutoApproved",
                "message": "Auto approving the client certificate of a let after an access review.",
            }] },
        });
        let requests = Api::<CertificateSigningRequest>::all(self.client.clone());
        let params = PatchParams::default();
        requests
            .patch_subresource("approval", name, &params, &Patch::Merge(&approval))
            .await?;
        Ok(())
    }
}

/// Whether nobody has decided yet.
fn is_pending(request: &CertificateSigningRequest) -> bool {
    let Some(status) = &request.status else {
        return true;
    };
    let decided = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| matches!(condition.type_.as_str(), "Approved" | "Denied" | "Failed"));
    status.certificate.is_none() && !decided
}

#[async_trait]
impl Controller for CertificateApprovalController {
    fn name(&self) -> &'static str {
        "certificateapproval"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Watch::<CertificateSigningRequest>::new().own_key().build()]
    }

    fn plan(&self, world: &World, key: &Key) -> Plan {
        let mut plan = Plan::none();
        let Some(request) = world.by_key::<CertificateSigningRequest>(key) else {
            return plan;
        };
        if object::is_deleting(&*request) || !is_pending(&request) {
            return plan;
        }
        if let Some(known) = recognize(&request.spec) {
            plan.push(Op::Act(Act::new(Decide {
                request: (*request).clone(),
                subresource: known.subresource,
            })));
        }
        plan
    }

    async fn act(&self, _: &World, _: &Key, act: Act) -> Result<(), Error> {
        let Some(decide) = act.payload::<Decide>() else {
            return Err(Error::Bug(format!("unknown act {}", act.label)));
        };
        let what = format!("approval of {}", object::name(&decide.request));
        self.decide(decide)
            .await
            .map_err(|error| Error::act(what, Class::Retry, error))
    }
}
