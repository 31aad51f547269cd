//! Patches over JSON documents: JSON Patch, merge patch, strategic merge, server-side apply.
