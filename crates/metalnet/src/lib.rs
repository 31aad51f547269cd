//! metalnet: the hypervisor agent between the API, dpservice and metalbond.
