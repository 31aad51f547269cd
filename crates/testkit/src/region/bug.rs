//! Bugs to plant, each a wrapper around something that is right, to prove that the simulation would find it.

use std::sync::Arc;

use controller::Controller;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {}

impl Bug {
    /// The controller with the bug in it, if it is that one's.
    pub fn wrap(self, _controller: Arc<dyn Controller>) -> Arc<dyn Controller> {
        match self {}
    }
}
