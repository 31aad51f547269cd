//! Writing answers: the one primitive the responders share.

/// Writes the parts one after the other to the front of `to`; what does not fit is left out.
pub(crate) fn join(to: &mut [u8], parts: &[&[u8]]) {
    for (to, from) in to.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
}
