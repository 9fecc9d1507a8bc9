//! What travels between two workers: a fixed header, then up to [`BLOCK_ELEMENTS`] little-endian `f32`.
//!
//! A receiver always knows which frame comes next. It compares the whole header with that expectation before it reads
//! a byte of payload, so no length from the wire is ever trusted, and a frame of another run, generation or step is
//! refused by the same comparison.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::LinkError;
use crate::tree::Node;
use crate::wire::{self, Deadline, Wire};

/// Elements of one frame: 256 KiB, large enough that system calls cost little, small enough to fill every link early.
pub(crate) const BLOCK_ELEMENTS: usize = 1 << 16;

const MAGIC: [u8; 4] = *b"blst";
const VERSION: u8 = 1;
pub(crate) const HEADER_BYTES: usize = 64;

/// Stands for the whole tree in frames that are not about a subtree.
pub(crate) const ROOT: Node = Node { level: u32::MAX, index: 0 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// First frame of a connection, both ways.
    Hello = 1,
    /// The sender has computed its slots of the step and reads what it is sent.
    Ready = 2,
    /// A block of a subtree's sum, for the owner of the chunk.
    Partial = 3,
    /// A block of the finished sum, from the owner of the chunk.
    Total = 4,
    /// First frame of a joiner's connection: asks for the state from an offset on.
    Fetch = 5,
    /// A block of the state.
    State = 6,
}

/// Everything that identifies a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    /// The run, see [`run_hash`].
    pub(crate) run: u64,
    pub(crate) generation: u64,
    pub(crate) world_size: u32,
    /// Rank of the sender.
    pub(crate) rank: u32,
    pub(crate) step: u64,
    /// Subtree of a `Partial`; the root otherwise.
    pub(crate) node: Node,
    /// Place of the first element within the whole gradient.
    pub(crate) offset: u64,
    pub(crate) payload_bytes: u32,
}

/// Shortens a run's name to what a header carries.
pub(crate) fn run_hash(run_id: &str) -> u64 {
    let hash = blake3::hash(run_id.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_BYTES - 4] {
        let mut bytes = [0; HEADER_BYTES - 4];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.kind as u8;
        bytes[8..16].copy_from_slice(&self.run.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.step.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.world_size.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.rank.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.node.level.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.node.index.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.offset.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8; HEADER_BYTES - 4]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let kind = [Kind::Hello, Kind::Ready, Kind::Partial, Kind::Total, Kind::Fetch, Kind::State]
            .into_iter()
            .find(|kind| *kind as u8 == bytes[5])
            .filter(|_| bytes[0..4] == MAGIC && bytes[4] == VERSION)?;
        Some(Self {
            kind,
            run: u64_at(8),
            generation: u64_at(16),
            step: u64_at(24),
            world_size: u32_at(32),
            rank: u32_at(36),
            node: Node { level: u32_at(40), index: u32_at(44) },
            offset: u64_at(48),
            payload_bytes: u32_at(56),
        })
    }
}

/// Describes a payload: the bytes that travel before it, with the CRC-32 of header and payload.
pub(crate) fn seal(header: Header, payload: &[f32]) -> [u8; HEADER_BYTES] {
    assert_eq!(header.payload_bytes as usize, payload.len() * 4, "the header describes its payload");
    let header = header.to_bytes();
    let mut bytes = [0; HEADER_BYTES];
    bytes[..HEADER_BYTES - 4].copy_from_slice(&header);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&checksum(&header, bytes_of(payload)).to_le_bytes());
    bytes
}

/// The payload's bytes, as they travel: little-endian.
pub(crate) fn bytes_of(payload: &[f32]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "gradients travel as they lie in memory") };
    bytemuck::cast_slice(payload)
}

/// Sends a sealed frame within the limit.
pub(crate) fn send(
    wire: &dyn Wire,
    sealed: &[u8; HEADER_BYTES],
    payload: &[f32],
    limit: Duration,
) -> Result<(), LinkError> {
    wire::write_all(wire, sealed, bytes_of(payload), Deadline::after(limit))
}

/// Receives the frame that must come next, its payload to where it belongs. What lies there after an error is worth
/// nothing.
pub(crate) fn receive(
    wire: &dyn Wire,
    expected: Header,
    payload: &mut [f32],
    limit: Duration,
) -> Result<(), LinkError> {
    assert_eq!(expected.payload_bytes as usize, payload.len() * 4, "the header describes its payload");
    let deadline = Deadline::after(limit);
    let mut bytes = [0; HEADER_BYTES];
    wire::read_exact(wire, &mut bytes, deadline)?;
    let (header, crc) = open_header(&bytes)?;
    if header != expected {
        return Err(LinkError::Unexpected { got: format!("{header:?}"), expected: format!("{expected:?}") });
    }
    wire::read_exact(wire, bytemuck::cast_slice_mut(payload), deadline)?;
    if checksum(&header.to_bytes(), bytes_of(payload)) != crc {
        return Err(LinkError::Checksum);
    }
    Ok(())
}

/// Writes a frame within the limit.
pub(crate) async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    header: Header,
    payload: &[f32],
    limit: Duration,
) -> Result<(), LinkError> {
    let sealed = seal(header, payload);
    let write = async {
        writer.write_all(&sealed).await?;
        writer.write_all(bytes_of(payload)).await
    };
    tokio::time::timeout(limit, write).await.map_err(|_| LinkError::Silent { limit })?.map_err(LinkError::from)
}

/// Reads the frame that must come next and returns its payload.
pub(crate) async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    expected: Header,
    limit: Duration,
) -> Result<Vec<f32>, LinkError> {
    let read = async {
        let (header, crc) = read_header(reader).await?;
        if header != expected {
            return Err(LinkError::Unexpected { got: format!("{header:?}"), expected: format!("{expected:?}") });
        }
        let mut payload = vec![0.0; header.payload_bytes as usize / 4];
        reader.read_exact(bytemuck::cast_slice_mut(&mut payload)).await?;
        if checksum(&header.to_bytes(), bytes_of(&payload)) != crc {
            return Err(LinkError::Checksum);
        }
        Ok(payload)
    };
    tokio::time::timeout(limit, read).await.map_err(|_| LinkError::Silent { limit })?
}

/// Reads the first frame of a connection whose sender is not known yet.
pub(crate) async fn read_hello(reader: &mut (impl AsyncRead + Unpin), limit: Duration) -> Result<Header, LinkError> {
    let (header, crc) =
        tokio::time::timeout(limit, read_header(reader)).await.map_err(|_| LinkError::Silent { limit })??;
    if !matches!(header.kind, Kind::Hello | Kind::Fetch) || header.payload_bytes != 0 {
        return Err(LinkError::Unexpected { got: format!("{header:?}"), expected: "a hello".to_owned() });
    }
    if checksum(&header.to_bytes(), &[]) != crc {
        return Err(LinkError::Checksum);
    }
    Ok(header)
}

async fn read_header(reader: &mut (impl AsyncRead + Unpin)) -> Result<(Header, u32), LinkError> {
    let mut bytes = [0; HEADER_BYTES];
    reader.read_exact(&mut bytes).await?;
    open_header(&bytes)
}

/// Takes a header apart: itself, and the checksum.
fn open_header(bytes: &[u8; HEADER_BYTES]) -> Result<(Header, u32), LinkError> {
    let (header, crc) = bytes.split_at(HEADER_BYTES - 4);
    let header = Header::from_bytes(header.try_into().expect("the header without its checksum")).ok_or_else(|| {
        LinkError::Unexpected { got: "other bytes".to_owned(), expected: "a frame of this protocol".to_owned() }
    })?;
    Ok((header, u32::from_le_bytes(crc.try_into().expect("four bytes"))))
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(payload);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn header(payload: usize) -> Header {
        Header {
            kind: Kind::Partial,
            run: run_hash("a run"),
            generation: 7,
            world_size: 3,
            rank: 2,
            step: 11,
            node: Node { level: 1, index: 4 },
            offset: 1 << 40,
            payload_bytes: payload as u32 * 4,
        }
    }

    fn encode(header: Header, payload: &[f32]) -> Vec<u8> {
        [&seal(header, payload), bytes_of(payload)].concat()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[tokio::test]
    async fn a_frame_comes_back_with_its_bits() {
        let values = [1.5, -0.0, f32::from_bits(0x7fc0_1234), f32::MIN_POSITIVE / 3.0];
        let frame = encode(header(4), &values);
        let read = read(&mut frame.as_slice(), header(4), LIMIT).await.unwrap();
        assert_eq!(bits(&read), bits(&values));
    }

    #[tokio::test]
    async fn a_frame_of_another_generation_is_refused_before_its_payload() {
        let frame = encode(Header { generation: 6, ..header(4) }, &[0.0; 4]);
        let mut reader = frame.as_slice();
        let error = read(&mut reader, header(4), LIMIT).await.unwrap_err();
        assert!(matches!(error, LinkError::Unexpected { .. }), "{error}");
        assert_eq!(reader.len(), 16);
    }

    #[tokio::test]
    async fn a_flipped_bit_is_noticed_wherever_it_is() {
        let frame = encode(header(4), &[0.5; 4]);
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // Bytes 6 and 7 are padding: they are not read, so nothing can depend on them.
            let harmless = (48..64).contains(&bit);
            assert_eq!(read(&mut damaged.as_slice(), header(4), LIMIT).await.is_ok(), harmless, "bit {bit}");
        }
    }

    #[tokio::test]
    async fn a_cut_frame_is_a_closed_link() {
        let frame = encode(header(4), &[0.5; 4]);
        let error = read(&mut &frame[..70], header(4), LIMIT).await.unwrap_err();
        assert!(matches!(error, LinkError::Closed), "{error}");
    }
}
