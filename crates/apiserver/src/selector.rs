//! Label and field selectors: grammar and matching.
