//! metalnetlet: OpenKCM-net to metalnet.
