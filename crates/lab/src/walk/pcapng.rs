//! Captured frames as a file for Wireshark: pcapng (draft-ietf-opsawg-pcapng), with an interface for each place of capture,
//! stamps in nanoseconds, directions, and comments.
//!
//! Surface: [`Writer`]. Written only; nothing here reads such files.

use std::io::{self, Write};

use flannel_kernel::capture::{Addressee, Direction, Frame, LinkLayer};

/// Types of blocks (§4).
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
/// Numbers are in the order of bytes in which this is written.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Options (§3.5, §4.1 to §4.3).
const COMMENT: u16 = 1;
const APPLICATION: u16 = 4;
const NAME: u16 = 2;
const RESOLUTION: u16 = 9;
const FLAGS: u16 = 2;
/// Longest text of an option; its length is a 16-bit number.
const LONGEST_TEXT: usize = 4096;

/// A file under construction.
#[derive(Debug)]
pub struct Writer<W> {
    file: W,
    points: u32,
}

/// A place of capture in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point(u32);

impl<W: Write> Writer<W> {
    /// Begins a file. It is whole after each call, though a writer that buffers has to be flushed.
    pub fn new(mut file: W) -> io::Result<Self> {
        let mut head = BYTE_ORDER.to_le_bytes().to_vec();
        head.extend([1_u16, 0].iter().flat_map(|version| version.to_le_bytes()));
        head.extend((-1_i64).to_le_bytes());
        option(&mut head, APPLICATION, b"flannel lab walk");
        block(&mut file, SECTION, head)?;
        Ok(Self { file, points: 0 })
    }

    /// Adds a place of capture, by the name that Wireshark shows, such as `node1/flannel.1`.
    pub fn point(&mut self, name: &str, link: LinkLayer) -> io::Result<Point> {
        let mut body = u32::from(link_type(link)).to_le_bytes().to_vec();
        body.extend(0_u32.to_le_bytes());
        option(&mut body, NAME, text(name));
        // Ten to the minus ninth.
        option(&mut body, RESOLUTION, &[9]);
        block(&mut self.file, INTERFACE, body)?;
        self.points += 1;
        Ok(Point(self.points - 1))
    }

    /// Adds a frame that was captured there.
    pub fn frame(&mut self, Point(at): Point, frame: &Frame, comment: Option<&str>) -> io::Result<()> {
        let stamp = frame.at.as_nanos() as u64;
        let numbers = [at, (stamp >> 32) as u32, stamp as u32, frame.bytes.len() as u32, frame.length];
        let mut body: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        body.extend(&frame.bytes);
        body.resize(body.len().next_multiple_of(4), 0);
        option(&mut body, FLAGS, &flags(frame.direction).to_le_bytes());
        if let Some(comment) = comment {
            option(&mut body, COMMENT, text(comment));
        }
        block(&mut self.file, PACKET, body)
    }

    /// The file.
    pub fn into_inner(self) -> W {
        self.file
    }
}

/// A block: type, length, body with its last option, length again.
fn block(file: &mut impl Write, kind: u32, mut body: Vec<u8>) -> io::Result<()> {
    body.extend([0; 4]);
    let length = (body.len() as u32 + 12).to_le_bytes();
    file.write_all(&[&kind.to_le_bytes(), &length, body.as_slice(), &length].concat())
}

/// Appends an option: number, length, content, padding.
fn option(body: &mut Vec<u8>, number: u16, content: &[u8]) {
    body.extend(number.to_le_bytes());
    body.extend((content.len() as u16).to_le_bytes());
    body.extend(content);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn text(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(LONGEST_TEXT)]
}

/// `LINKTYPE_ETHERNET`, `LINKTYPE_RAW`; what has none here is `LINKTYPE_USER0` (tcpdump.org/linktypes.html).
fn link_type(link: LinkLayer) -> u16 {
    match link {
        LinkLayer::Ethernet => 1,
        LinkLayer::Ip => 101,
        LinkLayer::Other(_) => 147,
    }
}

/// Inbound or outbound, and what kind of destination (§4.3.1).
fn flags(direction: Direction) -> u32 {
    match direction {
        Direction::Out => 2,
        Direction::In(Addressee::Host) => 1 | 1 << 2,
        Direction::In(Addressee::Multicast) => 1 | 2 << 2,
        Direction::In(Addressee::Broadcast) => 1 | 3 << 2,
        Direction::In(Addressee::OtherHost) => 1 | 4 << 2,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn blocks_are_padded_and_tell_their_length_twice() {
        let mut writer = Writer::new(Vec::new()).unwrap();
        let point = writer.point("n1/x", LinkLayer::Ip).unwrap();
        let at = Duration::new(1, 2);
        let frame = Frame { at, direction: Direction::Out, length: 99, checksum_ready: true, bytes: vec![7; 5] };
        writer.frame(point, &frame, Some("hop")).unwrap();
        let bytes = writer.into_inner();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let (mut kinds, mut start) = (Vec::new(), 0);
        while start < bytes.len() {
            let length = word(start + 4);
            assert_eq!((length % 4, word(start + length - 4)), (0, length));
            kinds.push((word(start), start));
            start += length;
        }
        assert_eq!(kinds.iter().map(|(kind, _)| *kind as u32).collect::<Vec<_>>(), [SECTION, INTERFACE, PACKET]);
        let packet = kinds[2].1;
        let stamp = (word(packet + 12) as u64) << 32 | word(packet + 16) as u64;
        assert_eq!((stamp, word(packet + 20), word(packet + 24)), (1_000_000_002, 5, 99));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(text(&"ö".repeat(4000)).len(), 4096);
        assert_eq!(text(&format!("x{}", "ö".repeat(4000))).len(), 4095);
    }
}
