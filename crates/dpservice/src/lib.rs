//! dpservice: workers, gRPC control, configuration and the dpservice-cli.
