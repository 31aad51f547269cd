//! MachineRuntime gRPC, machinepoollet and the machine providers.
