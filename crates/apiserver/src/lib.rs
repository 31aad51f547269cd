//! The Kubernetes-compatible API server: HTTP, registry, patch and apply, storage.
