//! Why a configuration request was refused: the closed list of status codes of the control protocol.

use core::fmt;

macro_rules! errors {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal $name:literal,)+) => {
        /// A refused request. Nothing was changed. The caller decides by [`ConfigError::code`]: "exists" and "not found" answers
        /// are the idempotent outcomes of a repeated request, all others need another request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ConfigError {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl ConfigError {
            /// Every error.
            pub const ALL: &'static [ConfigError] = &[$(ConfigError::$variant,)+];

            /// Numeric status code on the wire.
            #[must_use]
            pub const fn code(self) -> u32 {
                match self { $(ConfigError::$variant => $code,)+ }
            }

            /// Symbolic name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(ConfigError::$variant => $name,)+ }
            }
        }
    };
}

errors! {
    /// There is no such object or device.
    NotFound = 201 "NOT_FOUND",
    /// The object exists, or the device already has an interface.
    AlreadyExists = 202 "ALREADY_EXISTS",
    /// The request does not take this kind of VNI selection.
    WrongType = 203 "WRONG_TYPE",
    /// The address is of the wrong IP version.
    BadIpVersion = 204 "BAD_IPVER",
    /// The interface id of a dependent object is not known.
    NoVm = 205 "NO_VM",
    /// The VNI has no tables: no interface uses it.
    NoVni = 206 "NO_VNI",
    /// A table of objects is full.
    OutOfMemory = 208 "OUT_OF_MEMORY",
    /// A capture is running already.
    AlreadyActive = 210 "ALREADY_ACTIVE",
    /// No capture is running.
    NotActive = 211 "NOT_ACTIVE",
    /// Exactly this prefix is already in the VNI's table.
    RouteExists = 301 "ROUTE_EXISTS",
    /// There is no such prefix.
    RouteNotFound = 302 "ROUTE_NOT_FOUND",
    /// The prefix length is not valid, or the table is full.
    RouteInsert = 303 "ROUTE_INSERT",
    /// The prefix belongs to another port or to another kind of route.
    RouteBadPort = 304 "ROUTE_BAD_PORT",
    /// The address is a VIP or NAT address in this network already.
    DnatExists = 323 "DNAT_EXISTS",
    /// The interface has no VIP or NAT.
    SnatNoData = 341 "SNAT_NO_DATA",
    /// The interface has a VIP or NAT already.
    SnatExists = 343 "SNAT_EXISTS",
    /// No room for another VNI.
    VniInit = 361 "VNI_INIT4",
    /// The rate limits contradict each other or cannot be expressed.
    PortMeter = 383 "PORT_METER",
    /// The underlay address is taken, or there are no more.
    VnfInsert = 401 "VNF_INSERT",
    /// The interface id is in use.
    VmHandle = 402 "VM_HANDLE",
    /// The load balancer of a target is not known.
    NoLb = 422 "NO_LB",
    /// The load balancer has as many targets as it can have.
    BackipAdd = 423 "BACKIP_ADD",
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.code())
    }
}

impl core::error::Error for ConfigError {}
