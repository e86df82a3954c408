//! Frames on QUIC streams.

use mesh_proto::wire::{FRAME_HEADER_BYTES, Frame, FrameHeader, SKIPPED_FRAMES_MAX, WireError};
use quinn::{ReadError, RecvStream};

/// A frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side sent what the protocol does not allow.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The stream ended between frames.
    #[error("the stream ended")]
    Ended,
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// The stream or its connection failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Reads frames one by one, and never a byte beyond: what follows an `Open` is payload.
///
/// A reader may be dropped from a `select!` between polls and polled again; nothing is lost.
#[derive(Debug)]
pub struct FrameReader {
    header: [u8; FRAME_HEADER_BYTES],
    body: Vec<u8>,
    /// Bytes of header and body that have arrived.
    filled: usize,
    decoded: Option<FrameHeader>,
    skipped: usize,
    skipped_max: usize,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self {
            header: [0; FRAME_HEADER_BYTES],
            body: Vec::new(),
            filled: 0,
            decoded: None,
            skipped: 0,
            skipped_max: SKIPPED_FRAMES_MAX,
        }
    }
}

impl FrameReader {
    /// From now on any number of unknown optional frames is skipped: a conversation that goes on
    /// for months with a newer node may bring many, where an `Open` or a hello may not.
    pub fn converse(&mut self) {
        self.skipped_max = usize::MAX;
    }

    /// The next frame that this side knows. Unknown optional ones are skipped, up to a limit.
    ///
    /// # Errors
    /// [`FrameError`]; after one, the stream is of no further use.
    pub async fn next<F: Frame>(&mut self, stream: &mut RecvStream) -> Result<F, FrameError> {
        loop {
            let header = match self.decoded {
                Some(header) => header,
                None => {
                    while self.filled < FRAME_HEADER_BYTES {
                        let Some(read) = stream.read(&mut self.header[self.filled..]).await? else {
                            return Err(if self.filled == 0 {
                                FrameError::Ended
                            } else {
                                FrameError::Truncated
                            });
                        };
                        self.filled += read;
                    }
                    let header = FrameHeader::decode(self.header, F::BODY_BYTES_MAX)?;
                    self.decoded = Some(header);
                    header
                }
            };
            let body_bytes = header.body_bytes as usize;
            while self.filled < FRAME_HEADER_BYTES + body_bytes {
                let at = self.filled - FRAME_HEADER_BYTES;
                // Grown as bytes arrive: a length alone makes nobody allocate.
                if self.body.len() == at {
                    self.body.resize(body_bytes.min(at + READ_STEP_BYTES), 0);
                }
                match stream.read(&mut self.body[at..]).await? {
                    Some(read) => self.filled += read,
                    None => return Err(FrameError::Truncated),
                }
            }
            let frame = F::decode(header, &self.body[..body_bytes])?;
            self.filled = 0;
            self.decoded = None;
            self.body = Vec::new();
            match frame {
                Some(frame) => {
                    self.skipped = 0;
                    return Ok(frame);
                }
                None => {
                    self.skipped = self.skipped.saturating_add(1);
                    if self.skipped > self.skipped_max {
                        return Err(WireError::TooManySkipped.into());
                    }
                }
            }
        }
    }
}

/// By how much the buffer of a frame's body grows at a time, in bytes.
const READ_STEP_BYTES: usize = 4096;

/// The bytes of one frame.
///
/// # Errors
/// When the frame is over its limit.
pub fn encode<F: Frame>(frame: &F) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::new();
    frame.encode(&mut out)?;
    Ok(out)
}
