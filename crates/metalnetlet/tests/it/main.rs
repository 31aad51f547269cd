//! Plans of metalnetlet against the simulated API. metalnet is played by a small controller that holds and realizes
//! interfaces.

mod network;
mod network_interface;
mod node;
mod region;
