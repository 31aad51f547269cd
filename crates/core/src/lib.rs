//! Controllers of the user API: scheduling, ephemeral objects, claims.
