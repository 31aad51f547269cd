//! The generated service trait, filled in: one line per RPC. What every RPC has in common is in [`answer`].

use super::{
    Failure, Service, balancers, capture, check_initialized, errors, firewall, get_version,
    initialize, interfaces, nat, prefixes, refusal, routes, success,
};
use proto::dpdk::dpd_kironcore_server::DpdKironcore;
use proto::dpdk::{self, Status};
use tonic::{Code, Request, Response};

/// A reply whose outcome is in its field `status`.
trait Reply: Default {
    fn with_status(self, status: Status) -> Self;
}

/// Turns the outcome of an RPC into its reply and logs it under the name of its request without the ending.
fn answer<R: Reply>(
    request_type: &'static str,
    outcome: Result<R, Failure>,
) -> Result<Response<R>, tonic::Status> {
    let rpc = request_type.trim_end_matches("Request");
    let failure = match outcome {
        Ok(reply) => {
            tracing::info!(grpc_request = rpc, "Request");
            return Ok(Response::new(reply.with_status(success())));
        }
        Err(failure) => failure,
    };
    if !errors::is_listed(rpc, &failure) {
        tracing::error!(grpc_request = rpc, "Failure is not in the table of errors");
        debug_assert!(false, "{rpc} may not answer {failure:?}");
    }
    let (code, message) = match failure {
        Failure::Refused(value) => {
            let status = refusal(value);
            let (code, text) = (status.code, &status.message);
            tracing::warn!(
                grpc_request = rpc,
                grpc_error = code,
                grpc_message = text,
                "Failed request"
            );
            return Ok(Response::new(R::default().with_status(status)));
        }
        Failure::Invalid(text) => (Code::InvalidArgument, text),
        Failure::NotInitialized => (Code::Aborted, errors::NOT_INITIALIZED.to_owned()),
        Failure::Stopped => (Code::Internal, errors::STOPPED.to_owned()),
    };
    tracing::warn!(
        grpc_request = rpc,
        grpc_error = code as i32,
        grpc_message = message,
        "Failed request"
    );
    Err(tonic::Status::new(code, message))
}

macro_rules! service {
    (
        before_initialize { $($early:ident($early_request:ident) -> $early_reply:ident = $early_handler:path;)* }
        after_initialize { $($rpc:ident($request:ident) -> $reply:ident = $handler:path;)* }
    ) => {
        $(impl Reply for dpdk::$early_reply {
            fn with_status(mut self, status: Status) -> Self {
                self.status = Some(status);
                self
            }
        })*
        $(impl Reply for dpdk::$reply {
            fn with_status(mut self, status: Status) -> Self {
                self.status = Some(status);
                self
            }
        })*

        #[tonic::async_trait]
        impl DpdKironcore for Service {
            $(async fn $early(
                &self,
                request: Request<dpdk::$early_request>,
            ) -> Result<Response<dpdk::$early_reply>, tonic::Status> {
                answer(stringify!($early_request), $early_handler(self, request.into_inner()).await)
            })*

            $(async fn $rpc(
                &self,
                request: Request<dpdk::$request>,
            ) -> Result<Response<dpdk::$reply>, tonic::Status> {
                let outcome = match self.require_initialized() {
                    Ok(()) => $handler(self, request.into_inner()).await,
                    Err(failure) => Err(failure),
                };
                answer(stringify!($request), outcome)
            })*
        }
    };
}

service! {
    before_initialize {
        initialize(InitializeRequest) -> InitializeResponse = initialize;
    }
    after_initialize {
        check_initialized(CheckInitializedRequest) -> CheckInitializedResponse = check_initialized;
        get_version(GetVersionRequest) -> GetVersionResponse = get_version;
        list_interfaces(ListInterfacesRequest) -> ListInterfacesResponse = interfaces::list;
        get_interface(GetInterfaceRequest) -> GetInterfaceResponse = interfaces::get;
        create_interface(CreateInterfaceRequest) -> CreateInterfaceResponse = interfaces::create;
        delete_interface(DeleteInterfaceRequest) -> DeleteInterfaceResponse = interfaces::delete;
        list_prefixes(ListPrefixesRequest) -> ListPrefixesResponse = prefixes::list;
        create_prefix(CreatePrefixRequest) -> CreatePrefixResponse = prefixes::create;
        delete_prefix(DeletePrefixRequest) -> DeletePrefixResponse = prefixes::delete;
        list_routes(ListRoutesRequest) -> ListRoutesResponse = routes::list;
        create_route(CreateRouteRequest) -> CreateRouteResponse = routes::create;
        delete_route(DeleteRouteRequest) -> DeleteRouteResponse = routes::delete;
        check_vni_in_use(CheckVniInUseRequest) -> CheckVniInUseResponse = routes::check_vni_in_use;
        reset_vni(ResetVniRequest) -> ResetVniResponse = routes::reset_vni;
        list_load_balancer_prefixes(ListLoadBalancerPrefixesRequest) -> ListLoadBalancerPrefixesResponse = balancers::list_prefixes;
        create_load_balancer_prefix(CreateLoadBalancerPrefixRequest) -> CreateLoadBalancerPrefixResponse = balancers::create_prefix;
        delete_load_balancer_prefix(DeleteLoadBalancerPrefixRequest) -> DeleteLoadBalancerPrefixResponse = balancers::delete_prefix;
        create_vip(CreateVipRequest) -> CreateVipResponse = nat::create_vip;
        get_vip(GetVipRequest) -> GetVipResponse = nat::get_vip;
        delete_vip(DeleteVipRequest) -> DeleteVipResponse = nat::delete_vip;
        create_load_balancer(CreateLoadBalancerRequest) -> CreateLoadBalancerResponse = balancers::create;
        get_load_balancer(GetLoadBalancerRequest) -> GetLoadBalancerResponse = balancers::get;
        delete_load_balancer(DeleteLoadBalancerRequest) -> DeleteLoadBalancerResponse = balancers::delete;
        list_load_balancers(ListLoadBalancersRequest) -> ListLoadBalancersResponse = balancers::list;
        create_load_balancer_target(CreateLoadBalancerTargetRequest) -> CreateLoadBalancerTargetResponse = balancers::create_target;
        list_load_balancer_targets(ListLoadBalancerTargetsRequest) -> ListLoadBalancerTargetsResponse = balancers::list_targets;
        delete_load_balancer_target(DeleteLoadBalancerTargetRequest) -> DeleteLoadBalancerTargetResponse = balancers::delete_target;
        create_nat(CreateNatRequest) -> CreateNatResponse = nat::create;
        get_nat(GetNatRequest) -> GetNatResponse = nat::get;
        delete_nat(DeleteNatRequest) -> DeleteNatResponse = nat::delete;
        list_local_nats(ListLocalNatsRequest) -> ListLocalNatsResponse = nat::list_local;
        create_neighbor_nat(CreateNeighborNatRequest) -> CreateNeighborNatResponse = nat::create_neighbor;
        delete_neighbor_nat(DeleteNeighborNatRequest) -> DeleteNeighborNatResponse = nat::delete_neighbor;
        list_neighbor_nats(ListNeighborNatsRequest) -> ListNeighborNatsResponse = nat::list_neighbor;
        list_firewall_rules(ListFirewallRulesRequest) -> ListFirewallRulesResponse = firewall::list;
        create_firewall_rule(CreateFirewallRuleRequest) -> CreateFirewallRuleResponse = firewall::create;
        get_firewall_rule(GetFirewallRuleRequest) -> GetFirewallRuleResponse = firewall::get;
        delete_firewall_rule(DeleteFirewallRuleRequest) -> DeleteFirewallRuleResponse = firewall::delete;
        capture_start(CaptureStartRequest) -> CaptureStartResponse = capture::start;
        capture_stop(CaptureStopRequest) -> CaptureStopResponse = capture::stop;
        capture_status(CaptureStatusRequest) -> CaptureStatusResponse = capture::status;
    }
}
