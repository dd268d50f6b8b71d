//! Writes netlink messages one after the other into one buffer, which is kept from batch to batch.

use super::uapi::{
    NFNL_BATCH_GENID, NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, NLA_F_NESTED,
};
use crate::link::wire::{HEADER, NLM_F_ACK, NLM_F_REQUEST};

/// Length of `struct nfgenmsg`.
pub(super) const NFGENMSG: usize = 4;

/// Place of an attribute that is still open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nest(usize);

/// A buffer of messages.
#[derive(Debug, Default)]
pub(super) struct Batch {
    buffer: Vec<u8>,
    /// Start of the last message.
    message: usize,
    /// Sequence number of the last message.
    sequence: u32,
}

impl Batch {
    /// Drops all messages and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.message = 0;
    }

    /// Gives memory back when it has grown beyond `most`; the messages are lost.
    pub(super) fn shrink_to(&mut self, most: usize) {
        if self.buffer.capacity() > most {
            self.clear();
            self.buffer.shrink_to(most);
        }
    }

    /// The messages.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Sequence number of the last message.
    pub(super) fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Opens a batch; with a generation, the kernel refuses it when somebody committed since.
    pub(super) fn begin(&mut self, generation: Option<u32>) {
        self.start(NFNL_MSG_BATCH_BEGIN, 0, 0, NFNL_SUBSYS_NFTABLES);
        if let Some(generation) = generation {
            self.u32_be(NFNL_BATCH_GENID, generation);
        }
        self.finish();
    }

    /// Closes a batch; the message before it asks for the acknowledgement.
    pub(super) fn end(&mut self) {
        let flags = self.message + 6;
        self.buffer[flags] |= NLM_F_ACK.to_ne_bytes()[0];
        self.buffer[flags + 1] |= NLM_F_ACK.to_ne_bytes()[1];
        self.start(NFNL_MSG_BATCH_END, 0, 0, NFNL_SUBSYS_NFTABLES);
        self.finish();
    }

    /// Starts a message of nftables.
    pub(super) fn start_nft(&mut self, kind: u8, flags: u16, family: u8) {
        self.start(
            (NFNL_SUBSYS_NFTABLES << 8) | u16::from(kind),
            flags,
            family,
            0,
        );
    }

    fn start(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        self.message = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer
            .extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.buffer.extend_from_slice(&self.sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&[family, 0]);
        self.buffer.extend_from_slice(&resource.to_be_bytes());
        debug_assert_eq!(self.buffer.len() - self.message, HEADER + NFGENMSG);
    }

    /// Ends the message that was started last.
    pub(super) fn finish(&mut self) {
        let length = u32::try_from(self.buffer.len() - self.message)
            .expect("messages are split below 64 KiB");
        self.buffer[self.message..self.message + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Appends bytes.
    pub(super) fn bytes_attribute(&mut self, kind: u16, value: &[u8]) {
        let nest = self.open_plain(kind);
        self.buffer.extend_from_slice(value);
        self.close(nest);
    }

    /// Appends text with the zero that ends it.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let nest = self.open_plain(kind);
        self.buffer.extend_from_slice(value.as_bytes());
        self.buffer.push(0);
        self.close(nest);
    }

    /// Appends a number in network order, as nftables wants nearly all.
    pub(super) fn u32_be(&mut self, kind: u16, value: u32) {
        self.bytes_attribute(kind, &value.to_be_bytes());
    }

    /// Appends a number in network order.
    pub(super) fn u16_be(&mut self, kind: u16, value: u16) {
        self.bytes_attribute(kind, &value.to_be_bytes());
    }

    /// Appends a number in network order.
    pub(super) fn u64_be(&mut self, kind: u16, value: u64) {
        self.bytes_attribute(kind, &value.to_be_bytes());
    }

    /// Appends raw bytes to the open attribute.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Opens an attribute that holds others.
    pub(super) fn open(&mut self, kind: u16) -> Nest {
        self.open_plain(kind | NLA_F_NESTED)
    }

    /// Opens an attribute that holds bytes.
    pub(super) fn open_plain(&mut self, kind: u16) -> Nest {
        let nest = Nest(self.buffer.len());
        self.buffer.extend_from_slice(&[0; 2]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        nest
    }

    /// Closes an attribute and pads it.
    pub(super) fn close(&mut self, nest: Nest) {
        let length = u16::try_from(self.length(nest)).expect("lists are split below 64 KiB");
        self.buffer[nest.0..nest.0 + 2].copy_from_slice(&length.to_ne_bytes());
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    /// Bytes of an open attribute so far.
    pub(super) fn length(&self, nest: Nest) -> usize {
        self.buffer.len() - nest.0
    }

    /// Appends an attribute that holds what `fill` appends.
    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let nest = self.open(kind);
        fill(self);
        self.close(nest);
    }
}
