//! Machines on a hypervisor: the MachineRuntime gRPC, the agent that serves a machine pool with it
//! ([`poollet`]), and the provider whose machines are network namespaces ([`provider`]).
//!
//! Agent and provider meet only at `machine.v1alpha1`, so either can be replaced by another implementation.
//! In both, a pure `plan` decides and a thin shell acts.

pub mod poollet;
pub mod provider;
