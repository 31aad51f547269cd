//! Controllers of the OpenKCM-net API: reservations and their collectors.
