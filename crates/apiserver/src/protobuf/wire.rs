//! The protobuf wire format, as far as these messages use it.

use super::DecodeError;

/// Value of one field.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wire<'b> {
    Varint(u64),
    Bytes(&'b [u8]),
    /// 32 or 64 bits. No known field uses them, so only their length matters.
    Fixed,
}

/// Reads fields one after the other.
#[derive(Debug)]
pub(super) struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Reader<'b> {
        Reader(bytes)
    }

    /// The next field's number and value; `None` at the end. `context` names the message in errors.
    pub(super) fn field(
        &mut self,
        context: &'static str,
    ) -> Result<Option<(u32, Wire<'b>)>, DecodeError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint(context)?;
        let number = u32::try_from(tag >> 3).map_err(|_| DecodeError::Truncated(context))?;
        let wire = match (tag & 7) as u8 {
            0 => Wire::Varint(self.varint(context)?),
            1 => {
                self.take(8, context)?;
                Wire::Fixed
            }
            2 => {
                let len = self.varint(context)?;
                let len = usize::try_from(len).map_err(|_| DecodeError::Truncated(context))?;
                Wire::Bytes(self.take(len, context)?)
            }
            5 => {
                self.take(4, context)?;
                Wire::Fixed
            }
            other => return Err(DecodeError::Unsupported(other)),
        };
        Ok(Some((number, wire)))
    }

    fn take(&mut self, len: usize, context: &'static str) -> Result<&'b [u8], DecodeError> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(DecodeError::Truncated(context))?;
        self.0 = rest;
        Ok(taken)
    }

    /// At most ten bytes of seven bits, least significant first.
    fn varint(&mut self, context: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self
                .0
                .split_first()
                .ok_or(DecodeError::Truncated(context))?;
            self.0 = rest;
            // Bits beyond the 64th are dropped, as other decoders do.
            value |= u64::from(byte & 0x7f)
                .checked_shl(shift)
                .unwrap_or_default();
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Truncated(context))
    }
}
