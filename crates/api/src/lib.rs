//! Every kind of every API group: type, schema, defaulting, validation, printer columns. Pure.
