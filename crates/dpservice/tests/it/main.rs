//! dpservice from outside.
