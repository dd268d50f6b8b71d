//! Netlink framing: builds requests, walks messages and attributes.
//!
//! The walkers never fail: they stop at the first thing that does not fit, so a truncated buffer yields a prefix.
//! Messages are read with these few lines rather than with a full decoder, because one attribute of a newer kernel
//! that a full decoder refuses would hide an interface, and because a scan reads a dozen of the hundred attributes.

pub(crate) const NLM_F_REQUEST: u16 = 0x01;
pub(crate) const NLM_F_ACK: u16 = 0x04;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_CAPPED: u16 = 0x100;
pub(crate) const NLM_F_ACK_TLVS: u16 = 0x200;
pub(crate) const NLM_F_DUMP: u16 = 0x300;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Type bits of an attribute, without the flags `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;

/// A request under construction.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    buffer: Vec<u8>,
}

impl Request {
    /// Starts a message of type `kind` whose fixed part is `fixed`, for example a `struct ifinfomsg`.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut buffer = Vec::with_capacity(64);
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&kind.to_ne_bytes());
        buffer.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        buffer.extend_from_slice(&[0; 8]);
        buffer.extend_from_slice(fixed);
        let mut request = Self { buffer };
        request.pad();
        request
    }

    /// Appends one attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("our attributes are a few bytes long");
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.pad();
        self
    }

    /// Appends an attribute that holds those which `fill` appends.
    pub(crate) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 2]);
        self.buffer
            .extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let length = u16::try_from(filled.buffer.len() - start)
            .expect("our attributes are a few bytes long");
        filled.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// The bytes to send.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.buffer.len()).expect("our requests are short");
        self.buffer[0..4].copy_from_slice(&length.to_ne_bytes());
        self.buffer[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.buffer
    }

    fn pad(&mut self) {
        self.buffer.resize(aligned(self.buffer.len()), 0);
    }
}

/// One received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Port of the socket that asked, or that an event is due to.
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

/// Walks the messages of one datagram.
#[derive(Clone, Debug)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = usize::try_from(u32_at(self.0, 0)?).ok()?;
        let message = Message {
            kind: u16_at(self.0, 4)?,
            flags: u16_at(self.0, 6)?,
            sequence: u32_at(self.0, 8)?,
            port: u32_at(self.0, 12)?,
            payload: self.0.get(HEADER..length)?,
        };
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some(message)
    }
}

/// Walks attributes; the flags are cut from the type.
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & ATTRIBUTE_TYPE;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Rounds up to the four bytes on which messages and attributes start.
fn aligned(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// A number in host order.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_ne_bytes)
}

/// A number in host order.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_ne_bytes)
}

/// A number in host order.
pub(crate) fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    array_at(bytes, offset).map(i32::from_ne_bytes)
}

/// `N` bytes, if there are so many.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The text before the first NUL, with what is not UTF-8 replaced.
pub(crate) fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_back_what_it_builds() {
        let bytes = Request::new(18, NLM_F_ACK, &[1, 2, 3, 4])
            .attribute(3, b"cni0\0")
            .nested(18, |inner| inner.attribute(1, b"bridge"))
            .finish(7);

        let message = Messages(&bytes).next().unwrap();
        let attributes: Vec<_> = Attributes(&message.payload[4..]).collect();

        assert_eq!(message.kind, 18);
        assert_eq!(message.flags, NLM_F_REQUEST | NLM_F_ACK);
        assert_eq!(message.sequence, 7);
        assert_eq!(attributes[0], (3, b"cni0\0".as_slice()));
        assert_eq!(attributes[1].0, 18);
        assert_eq!(
            Attributes(attributes[1].1).collect::<Vec<_>>(),
            [(1, b"bridge".as_slice())]
        );
    }

    proptest! {
        #[test]
        fn walkers_end_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Messages(&bytes).count() <= bytes.len() / HEADER + 1);
            prop_assert!(Attributes(&bytes).count() <= bytes.len() / 4 + 1);
        }
    }
}
