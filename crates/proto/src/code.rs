//! Status codes of dpservice: what `status.code` means and the symbolic name that goes into `status.message`.
//!
//! A code is part of the protocol. Clients treat "already there" codes as success of a create and "not there" codes as success of a
//! delete, so the choice between two codes matters.

/// Text of `status.message` when the call succeeded.
pub const SUCCESS_MESSAGE: &str = "Success";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        $($(#[$doc])* pub const $name: u32 = $value;)*

        /// Every failure code with its symbolic name, ascending.
        pub const ALL: &[(u32, &str)] = &[$(($value, stringify!($name))),*];
    };
}

/// The call succeeded.
pub const OK: u32 = 0;

codes! {
    /// Unknown internal request; not reachable over gRPC.
    BAD_REQUEST = 101;
    /// The object to get or delete does not exist; unknown device.
    NOT_FOUND = 201;
    /// The object to create exists.
    ALREADY_EXISTS = 202;
    /// The VNI type does not fit the call.
    WRONG_TYPE = 203;
    /// The address family does not fit the call.
    BAD_IPVER = 204;
    /// Unknown interface id in a call about something that belongs to an interface.
    NO_VM = 205;
    /// The VNI has no tables: no interface or load balancer uses it.
    NO_VNI = 206;
    /// A table walk failed.
    ITERATOR = 207;
    /// A table is full.
    OUT_OF_MEMORY = 208;
    /// More captured ports than a reply can carry.
    LIMIT_REACHED = 209;
    /// A capture is running already.
    ALREADY_ACTIVE = 210;
    /// No capture is running, or the instance cannot capture.
    NOT_ACTIVE = 211;
    /// A failed capture could not be rolled back.
    ROLLBACK = 212;
    /// A hardware rule could not be added.
    RTE_RULE_ADD = 213;
    /// A hardware rule could not be removed.
    RTE_RULE_DEL = 214;
    /// The exact prefix exists in this VNI (route, alias prefix or an interface's own address).
    ROUTE_EXISTS = 301;
    /// No such prefix.
    ROUTE_NOT_FOUND = 302;
    /// The prefix cannot be inserted: bad length or table full.
    ROUTE_INSERT = 303;
    /// The prefix belongs to another port.
    ROUTE_BAD_PORT = 304;
    /// A route table could not be re-created.
    ROUTE_RESET = 305;
    /// No destination NAT data.
    DNAT_NO_DATA = 321;
    /// A destination NAT entry could not be created.
    DNAT_CREATE = 322;
    /// The address is a VIP or NAT address of this VNI already.
    DNAT_EXISTS = 323;
    /// The interface has no VIP (or NAT).
    SNAT_NO_DATA = 341;
    /// A source NAT entry could not be created.
    SNAT_CREATE = 342;
    /// The interface has a VIP (or NAT) already.
    SNAT_EXISTS = 343;
    /// The tables of a VNI could not be created.
    VNI_INIT4 = 361;
    /// Defined by the protocol, never returned.
    VNI_INIT6 = 362;
    /// A VNI could not be released.
    VNI_FREE4 = 363;
    /// Defined by the protocol, never returned.
    VNI_FREE6 = 364;
    /// The port could not be started.
    PORT_START = 381;
    /// The port could not be stopped.
    PORT_STOP = 382;
    /// The rate limits cannot be applied.
    PORT_METER = 383;
    /// The underlay address is registered already, or the table is full.
    VNF_INSERT = 401;
    /// The interface id is in use.
    VM_HANDLE = 402;
    /// An underlay address could not be removed.
    VNF_DELETE = 403;
    /// The load balancer id is known but its entry is missing.
    NO_BACKIP = 421;
    /// Unknown load balancer in a call about its targets.
    NO_LB = 422;
    /// The target cannot be added: too many.
    BACKIP_ADD = 423;
    /// The target table could not be rebuilt.
    BACKIP_DEL = 424;
    /// Firewall rules with action DROP are not supported.
    NO_DROP_SUPPORT = 441;
}

/// The symbolic name of a status code; `Success` for 0, `None` for a code the protocol does not know.
pub fn name(code: u32) -> Option<&'static str> {
    if code == OK {
        return Some(SUCCESS_MESSAGE);
    }
    let index = ALL.binary_search_by_key(&code, |entry| entry.0).ok()?;
    ALL.get(index).map(|entry| entry.1)
}
