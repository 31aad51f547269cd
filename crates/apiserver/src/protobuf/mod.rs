//! Decoding of protobuf request bodies of built-in kinds.
