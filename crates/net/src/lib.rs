//! Value types (Vni, Mac, Prefix, PortRange) and wire formats as checked views. Pure.
