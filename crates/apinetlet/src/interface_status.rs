//! What a user NetworkInterface shows of the interface behind it: state, addresses, what hypervisors translate for it, and a
//! condition Ready that says what is missing.

use api::{
    apinet,
    conditions::{self, Verdict},
    ids::NetworkInterfaceProviderId,
    networking::{
        NetworkInterface, NetworkInterfaceNatIp, NetworkInterfaceState, NetworkInterfaceStatus,
    },
};
use controller::{Op, Target};
use serde_json::json;

/// The status patch, if anything differs. Without an interface behind it, a user interface is Pending and has no addresses.
pub(crate) fn report(
    user: &NetworkInterface,
    made: Option<&apinet::NetworkInterface>,
    now_ms: u64,
) -> Option<Op> {
    let shown = user.status.clone().unwrap_or_default();
    let NetworkInterfaceStatus {
        state,
        last_state_transition_time: _,
        ips,
        prefixes,
        virtual_ip,
        nat_ips,
        conditions: _,
    } = match made {
        Some(made) => observed(made),
        None => NetworkInterfaceStatus {
            state: Some(NetworkInterfaceState::Pending),
            ..NetworkInterfaceStatus::default()
        },
    };
    let moved = shown.state != state;
    let verdicts = [verdict(user, made)];
    let generation = user.metadata.generation;
    let renewed = conditions::renewed(&shown.conditions, &verdicts, generation, now_ms);
    let wanted = NetworkInterfaceStatus {
        state,
        ips,
        prefixes,
        virtual_ip,
        nat_ips,
        last_state_transition_time: if moved {
            Some(conditions::at(now_ms))
        } else {
            shown.last_state_transition_time.clone()
        },
        conditions: renewed.unwrap_or_else(|| shown.conditions.clone()),
    };
    if shown == wanted {
        return None;
    }
    // Explicit empties: a merge patch only changes what it names.
    let NetworkInterfaceStatus {
        state,
        last_state_transition_time,
        ips,
        prefixes,
        virtual_ip,
        nat_ips,
        conditions,
    } = wanted;
    let status = json!({
        "state": state,
        "lastStateTransitionTime": last_state_transition_time,
        "ips": ips,
        "prefixes": prefixes,
        "virtualIP": virtual_ip,
        "natIPs": nat_ips,
        "conditions": conditions,
    });
    Some(Op::patch_status(Target::of(user), status))
}

fn observed(made: &apinet::NetworkInterface) -> NetworkInterfaceStatus {
    let status = made.status.clone().unwrap_or_default();
    NetworkInterfaceStatus {
        state: Some(match status.state {
            Some(apinet::NetworkInterfaceState::Ready) => NetworkInterfaceState::Available,
            Some(apinet::NetworkInterfaceState::Error) => NetworkInterfaceState::Error,
            Some(apinet::NetworkInterfaceState::Pending) | None => NetworkInterfaceState::Pending,
        }),
        last_state_transition_time: None,
        ips: made.spec.ips.clone(),
        prefixes: made.spec.prefixes.clone(),
        // The field holds one address; IPv4 comes first when both families are public.
        virtual_ip: status
            .public_ips
            .iter()
            .copied()
            .min_by_key(|ip| ip.family()),
        nat_ips: status.nat_ips.iter().filter_map(nat_ip).collect(),
        conditions: Vec::new(),
    }
}

fn nat_ip(nat: &apinet::NatIp) -> Option<NetworkInterfaceNatIp> {
    let apinet::NatIp { ip, port, end_port } = *nat;
    Some(NetworkInterfaceNatIp {
        ip: ip?,
        port,
        end_port,
    })
}

fn verdict(user: &NetworkInterface, made: Option<&apinet::NetworkInterface>) -> Verdict {
    let handle = &user.spec.provider_id;
    let Some(made) = made else {
        if handle.is_empty() {
            return Verdict::not_ready("NotAttached", "no running machine uses the interface");
        }
        return match handle.parse::<NetworkInterfaceProviderId>() {
            Ok(_) => {
                let note = format!("{handle} is no free interface of the network");
                Verdict::not_ready("InterfaceNotFound", note)
            }
            Err(error) => Verdict::not_ready("HandleInvalid", error.to_string()),
        };
    };
    let node = &made.spec.node_ref.name;
    match made.status.as_ref().and_then(|status| status.state) {
        Some(apinet::NetworkInterfaceState::Ready) => {
            Verdict::ready("Available", format!("node {node} passes packets"))
        }
        Some(apinet::NetworkInterfaceState::Error) => {
            let note = format!("node {node} reports an error");
            Verdict::not_ready("HypervisorError", note)
        }
        Some(apinet::NetworkInterfaceState::Pending) | None => {
            Verdict::not_ready("HypervisorPending", format!("waits for node {node}"))
        }
    }
}
