//! A dpservice without packets, over real gRPC: the model of `model` behind the wire format, which can be killed.
//!
//! Each instance runs on a runtime of its own, so that dropping it cuts its connections as the death of a process does.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use metalnet::model::{Prefix, Uid, Vni};
use metalnet::plan::observed::Hop;
use metalnet::plan::ops::{DpDone, DpError, DpOp, InterfaceRequest, RouteKey};
use proto::dpdk;
use proto::dpdk::dpd_kironcore_server::{DpdKironcore, DpdKironcoreServer};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::model::{Model, Owner};

/// The state outlives instances, so that a test can look at it any time; a restart empties it.
pub struct Fake {
    pub model: Arc<Mutex<Model>>,
    pub address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Fake {
    /// An instance on a free port.
    pub fn start(devices: u32) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut fake = Self {
            model: Arc::new(Mutex::new(Model::new(devices))),
            address,
            runtime: None,
        };
        fake.launch();
        fake
    }

    /// Ends the instance without a word.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// A new, empty instance on the same port.
    pub fn restart(&mut self) {
        self.kill();
        self.model().restart();
        self.launch();
    }

    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    fn launch(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let service = DpdKironcoreServer::new(Service(self.model.clone()));
        let address = self.address;
        let (bound, wait) = std::sync::mpsc::channel();
        let serve = async move {
            let (reporter, health) = tonic_health::server::health_reporter();
            let status = tonic_health::ServingStatus::Serving;
            reporter
                .set_service_status("dpdkironcore.v1.DPDKironcore", status)
                .await;
            let listener = loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            bound.send(()).unwrap();
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let _ = Server::builder()
                .add_service(service)
                .add_service(health)
                .serve_with_incoming(incoming)
                .await;
        };
        let _ = runtime.spawn(serve);
        wait.recv().unwrap();
        self.runtime = Some(runtime);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Service(Arc<Mutex<Model>>);

impl Service {
    fn call(&self, op: &DpOp) -> Result<(DpDone, Option<dpdk::Status>), Status> {
        match self.0.lock().unwrap().execute(op) {
            Ok(done) => Ok((
                done,
                Some(dpdk::Status {
                    code: 0,
                    message: "Success".to_owned(),
                }),
            )),
            Err(DpError::Code { code, message }) => {
                Ok((DpDone::Done, Some(dpdk::Status { code, message })))
            }
            Err(DpError::Argument(message)) => Err(Status::invalid_argument(message)),
            Err(DpError::Uninitialized) => Err(Status::aborted("not initialized")),
            Err(DpError::Unavailable(message)) => Err(Status::unavailable(message)),
        }
    }

    fn initialized(&self) -> Result<MutexGuard<'_, Model>, Status> {
        let model = self.0.lock().unwrap();
        if model.initialized {
            Ok(model)
        } else {
            Err(Status::aborted("not initialized"))
        }
    }
}

fn success() -> Option<dpdk::Status> {
    Some(dpdk::Status {
        code: 0,
        message: "Success".to_owned(),
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn uid(bytes: &[u8]) -> Result<Uid, Status> {
    Uid::new(text(bytes)).ok_or_else(|| Status::invalid_argument("Invalid interface_id"))
}

fn vni(vni: u32) -> Vni {
    Vni::new(vni).unwrap()
}

fn from_prefix(prefix: Option<dpdk::Prefix>) -> Result<Prefix, Status> {
    let prefix = prefix.unwrap_or_default();
    let ip = prefix.ip.unwrap_or_default();
    let address: std::net::IpAddr = text(&ip.address)
        .parse()
        .map_err(|_| Status::invalid_argument("Invalid prefix.ip"))?;
    if (ip.ipver == 0) != address.is_ipv4() {
        return Err(Status::invalid_argument("Invalid prefix.ip"));
    }
    let length = u8::try_from(prefix.length)
        .map_err(|_| Status::invalid_argument("Invalid prefix.length"))?;
    Prefix::new(address, length).ok_or_else(|| Status::invalid_argument("Invalid prefix.length"))
}

fn to_address(address: std::net::IpAddr) -> dpdk::IpAddress {
    dpdk::IpAddress {
        ipver: i32::from(address.is_ipv6()),
        address: address.to_string().into_bytes(),
    }
}

fn to_prefix(prefix: Prefix, underlay: Option<std::net::Ipv6Addr>) -> dpdk::Prefix {
    dpdk::Prefix {
        ip: Some(to_address(prefix.address())),
        length: u32::from(prefix.len()),
        underlay_route: underlay
            .map(|u| u.to_string().into_bytes())
            .unwrap_or_default(),
    }
}

fn underlay(done: &DpDone) -> Vec<u8> {
    match done {
        DpDone::Underlay(address) => address.to_string().into_bytes(),
        DpDone::Done | DpDone::Instance(_) | DpDone::Inventory(_) => Vec::new(),
    }
}

macro_rules! service {
    ($($rest:ident: $request:ident -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl DpdKironcore for Service {
            async fn check_initialized(
                &self,
                _: Request<dpdk::CheckInitializedRequest>,
            ) -> Result<Response<dpdk::CheckInitializedResponse>, Status> {
                let uuid = self.initialized()?.uuid();
                Ok(Response::new(dpdk::CheckInitializedResponse { status: success(), uuid }))
            }

            async fn initialize(
                &self,
                _: Request<dpdk::InitializeRequest>,
            ) -> Result<Response<dpdk::InitializeResponse>, Status> {
                let (_, status) = self.call(&DpOp::Initialize)?;
                let uuid = self.initialized()?.uuid();
                Ok(Response::new(dpdk::InitializeResponse { status, uuid }))
            }

            async fn list_interfaces(
                &self,
                _: Request<dpdk::ListInterfacesRequest>,
            ) -> Result<Response<dpdk::ListInterfacesResponse>, Status> {
                let mut model = self.initialized()?;
                model.calls.push("ListInterfaces");
                let interfaces = model.interfaces.iter().map(|(uid, i)| dpdk::Interface {
                    id: uid.as_str().as_bytes().to_vec(),
                    vni: i.vni.get(),
                    primary_ipv4: i.ipv4.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED).to_string().into_bytes(),
                    primary_ipv6: i.ipv6.unwrap_or(std::net::Ipv6Addr::UNSPECIFIED).to_string().into_bytes(),
                    underlay_route: i.underlay.to_string().into_bytes(),
                    pci_name: i.device.clone(),
                    metering_params: Some(dpdk::MeteringParams { total_rate: i.total_rate, public_rate: i.public_rate }),
                    hostname: i.hostname.clone(),
                });
                let interfaces = interfaces.collect();
                Ok(Response::new(dpdk::ListInterfacesResponse { status: success(), interfaces }))
            }

            async fn create_interface(
                &self,
                request: Request<dpdk::CreateInterfaceRequest>,
            ) -> Result<Response<dpdk::CreateInterfaceResponse>, Status> {
                let r = request.into_inner();
                let address = |config: Option<dpdk::IpConfig>| config.unwrap_or_default().primary_address;
                let ipv4: std::net::Ipv4Addr = text(&address(r.ipv4_config)).parse()
                    .map_err(|_| Status::invalid_argument("Invalid ipv4_config.primary_address"))?;
                let ipv6: std::net::Ipv6Addr = text(&address(r.ipv6_config)).parse()
                    .map_err(|_| Status::invalid_argument("Invalid ipv6_config.primary_address"))?;
                let rates = r.metering_parameters.unwrap_or_default();
                let request = InterfaceRequest {
                    vni: vni(r.vni),
                    device: r.device_name,
                    ipv4: Some(ipv4).filter(|a| !a.is_unspecified()),
                    ipv6: Some(ipv6).filter(|a| !a.is_unspecified()),
                    total_rate: rates.total_rate,
                    public_rate: rates.public_rate,
                    hostname: r.hostname,
                };
                let op = DpOp::CreateInterface { uid: uid(&r.interface_id)?, request: Box::new(request) };
                let (done, status) = self.call(&op)?;
                let reply = dpdk::CreateInterfaceResponse { status, underlay_route: underlay(&done), vf: None };
                Ok(Response::new(reply))
            }

            async fn delete_interface(
                &self,
                request: Request<dpdk::DeleteInterfaceRequest>,
            ) -> Result<Response<dpdk::DeleteInterfaceResponse>, Status> {
                let uid = uid(&request.into_inner().interface_id)?;
                let (_, status) = self.call(&DpOp::DeleteInterface { uid })?;
                Ok(Response::new(dpdk::DeleteInterfaceResponse { status }))
            }

            async fn list_prefixes(
                &self,
                request: Request<dpdk::ListPrefixesRequest>,
            ) -> Result<Response<dpdk::ListPrefixesResponse>, Status> {
                let uid = uid(&request.into_inner().interface_id)?;
                let model = self.initialized()?;
                let Some(interface) = model.interfaces.get(&uid) else {
                    let status = Some(dpdk::Status { code: 205, message: "NO_VM".to_owned() });
                    return Ok(Response::new(dpdk::ListPrefixesResponse { status, prefixes: Vec::new() }));
                };
                let prefixes = interface.prefixes.iter().map(|(p, u)| to_prefix(*p, Some(*u))).collect();
                Ok(Response::new(dpdk::ListPrefixesResponse { status: success(), prefixes }))
            }

            async fn create_prefix(
                &self,
                request: Request<dpdk::CreatePrefixRequest>,
            ) -> Result<Response<dpdk::CreatePrefixResponse>, Status> {
                let r = request.into_inner();
                let op = DpOp::CreatePrefix { uid: uid(&r.interface_id)?, prefix: from_prefix(r.prefix)? };
                let (done, status) = self.call(&op)?;
                Ok(Response::new(dpdk::CreatePrefixResponse { status, underlay_route: underlay(&done) }))
            }

            async fn delete_prefix(
                &self,
                request: Request<dpdk::DeletePrefixRequest>,
            ) -> Result<Response<dpdk::DeletePrefixResponse>, Status> {
                let r = request.into_inner();
                let op = DpOp::DeletePrefix { uid: uid(&r.interface_id)?, prefix: from_prefix(r.prefix)? };
                let (_, status) = self.call(&op)?;
                Ok(Response::new(dpdk::DeletePrefixResponse { status }))
            }

            async fn list_routes(
                &self,
                request: Request<dpdk::ListRoutesRequest>,
            ) -> Result<Response<dpdk::ListRoutesResponse>, Status> {
                let model = self.initialized()?;
                let Some(table) = model.tables.get(&vni(request.into_inner().vni)) else {
                    let status = Some(dpdk::Status { code: 206, message: "NO_VNI".to_owned() });
                    return Ok(Response::new(dpdk::ListRoutesResponse { status, routes: Vec::new() }));
                };
                let routes = table.iter().filter_map(|(prefix, owner)| match owner {
                    Owner::Remote(hop) => Some(dpdk::Route {
                        prefix: Some(to_prefix(*prefix, None)),
                        nexthop_vni: hop.vni.get(),
                        nexthop_address: Some(to_address(hop.address.into())),
                        weight: 0,
                    }),
                    Owner::Interface(_) | Owner::Alias(_) => None,
                });
                let routes = routes.collect();
                Ok(Response::new(dpdk::ListRoutesResponse { status: success(), routes }))
            }

            async fn create_route(
                &self,
                request: Request<dpdk::CreateRouteRequest>,
            ) -> Result<Response<dpdk::CreateRouteResponse>, Status> {
                let r = request.into_inner();
                let route = r.route.unwrap_or_default();
                let address = route.nexthop_address.unwrap_or_default().address;
                let address = text(&address).parse()
                    .map_err(|_| Status::invalid_argument("Invalid route.nexthop_address"))?;
                let key = RouteKey { vni: vni(r.vni), prefix: from_prefix(route.prefix)? };
                let hop = Hop { vni: vni(route.nexthop_vni), address };
                let (_, status) = self.call(&DpOp::CreateRoute { key, hop })?;
                Ok(Response::new(dpdk::CreateRouteResponse { status }))
            }

            async fn delete_route(
                &self,
                request: Request<dpdk::DeleteRouteRequest>,
            ) -> Result<Response<dpdk::DeleteRouteResponse>, Status> {
                let r = request.into_inner();
                let key = RouteKey { vni: vni(r.vni), prefix: from_prefix(r.route.unwrap_or_default().prefix)? };
                let (_, status) = self.call(&DpOp::DeleteRoute { key })?;
                Ok(Response::new(dpdk::DeleteRouteResponse { status }))
            }

            $(async fn $rest(
                &self,
                _: Request<dpdk::$request>,
            ) -> Result<Response<dpdk::$response>, Status> {
                Err(Status::unimplemented(stringify!($rest)))
            })*
        }
    };
}

service! {
    get_version: GetVersionRequest -> GetVersionResponse;
    get_interface: GetInterfaceRequest -> GetInterfaceResponse;
    list_load_balancer_prefixes: ListLoadBalancerPrefixesRequest -> ListLoadBalancerPrefixesResponse;
    create_load_balancer_prefix: CreateLoadBalancerPrefixRequest -> CreateLoadBalancerPrefixResponse;
    delete_load_balancer_prefix: DeleteLoadBalancerPrefixRequest -> DeleteLoadBalancerPrefixResponse;
    create_vip: CreateVipRequest -> CreateVipResponse;
    get_vip: GetVipRequest -> GetVipResponse;
    delete_vip: DeleteVipRequest -> DeleteVipResponse;
    create_load_balancer: CreateLoadBalancerRequest -> CreateLoadBalancerResponse;
    get_load_balancer: GetLoadBalancerRequest -> GetLoadBalancerResponse;
    delete_load_balancer: DeleteLoadBalancerRequest -> DeleteLoadBalancerResponse;
    list_load_balancers: ListLoadBalancersRequest -> ListLoadBalancersResponse;
    create_load_balancer_target: CreateLoadBalancerTargetRequest -> CreateLoadBalancerTargetResponse;
    list_load_balancer_targets: ListLoadBalancerTargetsRequest -> ListLoadBalancerTargetsResponse;
    delete_load_balancer_target: DeleteLoadBalancerTargetRequest -> DeleteLoadBalancerTargetResponse;
    create_nat: CreateNatRequest -> CreateNatResponse;
    get_nat: GetNatRequest -> GetNatResponse;
    delete_nat: DeleteNatRequest -> DeleteNatResponse;
    list_local_nats: ListLocalNatsRequest -> ListLocalNatsResponse;
    create_neighbor_nat: CreateNeighborNatRequest -> CreateNeighborNatResponse;
    delete_neighbor_nat: DeleteNeighborNatRequest -> DeleteNeighborNatResponse;
    list_neighbor_nats: ListNeighborNatsRequest -> ListNeighborNatsResponse;
    check_vni_in_use: CheckVniInUseRequest -> CheckVniInUseResponse;
    reset_vni: ResetVniRequest -> ResetVniResponse;
    list_firewall_rules: ListFirewallRulesRequest -> ListFirewallRulesResponse;
    create_firewall_rule: CreateFirewallRuleRequest -> CreateFirewallRuleResponse;
    get_firewall_rule: GetFirewallRuleRequest -> GetFirewallRuleResponse;
    delete_firewall_rule: DeleteFirewallRuleRequest -> DeleteFirewallRuleResponse;
    capture_start: CaptureStartRequest -> CaptureStartResponse;
    capture_stop: CaptureStopRequest -> CaptureStopResponse;
    capture_status: CaptureStatusRequest -> CaptureStatusResponse;
}
