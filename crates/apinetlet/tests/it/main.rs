//! Plans of apinetlet against the simulated API. The API server's reservations are played by a small controller.

mod network;
mod network_interface;
mod region;
mod virtual_ip;
