//! Generated gRPC types of dpservice and the MachineRuntime; no logic.
