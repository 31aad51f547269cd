//! Starting and stopping captures.

use super::Engine;
use crate::capture::Capture;
use crate::config::PortKind;
use crate::error::ConfigError;
use crate::history::Change;
use crate::objects::{CapturePort, CaptureSpec};
use crate::verdict::PortId;
use std::sync::Arc;

impl Engine {
    /// Starts mirroring. There is at most one capture.
    pub fn start_capture(&mut self, mut spec: CaptureSpec) -> Result<(), ConfigError> {
        if self.tables.capture.is_some() {
            return Err(ConfigError::AlreadyActive);
        }
        let mut found = Vec::with_capacity(spec.ports.len());
        for captured in spec.ports {
            let port = self.captured_port(&captured).ok_or(ConfigError::NotFound)?;
            if found.iter().any(|(other, _)| *other == port) {
                return Err(ConfigError::AlreadyActive);
            }
            found.push((port, captured));
        }
        found.sort_by_key(|(port, _)| *port);
        let ports;
        (ports, spec.ports) = found.into_iter().unzip();
        self.edit(Change::Nothing).capture = Some(Arc::new(Capture { spec, ports }));
        Ok(())
    }

    fn captured_port(&self, captured: &CapturePort) -> Option<PortId> {
        match captured {
            CapturePort::Interface(id) => self.interfaces.get(id).copied(),
            CapturePort::Uplink(number) => {
                let mut ports = self.tables.ports.iter();
                let is_it = |port: &crate::tables::Port| port.kind == PortKind::Uplink(*number);
                ports.position(is_it).map(|index| PortId(index as u16))
            }
        }
    }

    /// Stops mirroring and returns how many ports were captured.
    pub fn stop_capture(&mut self) -> Result<usize, ConfigError> {
        let capture = self.tables.capture.clone();
        let ports = capture.ok_or(ConfigError::NotActive)?.ports.len();
        self.edit(Change::Nothing).capture = None;
        Ok(ports)
    }

    /// The capture in force, its ports in the order of their numbers.
    #[must_use]
    pub fn capture(&self) -> Option<&CaptureSpec> {
        self.tables.capture.as_ref().map(|capture| &capture.spec)
    }

    /// An interface that goes is no longer captured; the capture itself stays.
    pub(super) fn forget_captured(&mut self, id: &str, port: PortId) {
        let Some(capture) = self.tables.capture.as_ref() else {
            return;
        };
        if !capture.covers(port) {
            return;
        }
        let mut changed = Capture::clone(capture);
        changed.ports.retain(|other| *other != port);
        let gone = CapturePort::Interface(id.to_owned());
        changed.spec.ports.retain(|other| *other != gone);
        self.edit(Change::Nothing).capture = Some(Arc::new(changed));
    }
}
