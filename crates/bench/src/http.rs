//! Answers of HTTP/1.1, as far as servers of JSON send them: of a length that they say, or in chunks.
//!
//! Surface: [`Answer`]. Requests are written by who asks.

use std::io::{BufRead, Read};

use anyhow::{Context, Result, ensure};

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status: 200 is success.
    pub status: u16,
    /// What came behind the head.
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads one, and no byte of the next.
    pub fn read(stream: &mut impl BufRead) -> Result<Self> {
        let mut head = Vec::new();
        loop {
            let line = line(stream)?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        let status = head.first().and_then(|line| line.strip_prefix("http/1.1 ")?.get(..3)?.parse().ok());
        let field = |name| head.iter().find_map(|line| line.strip_prefix(name));
        let body = match field("content-length: ") {
            Some(length) => exactly(stream, length.parse()?)?,
            None if field("transfer-encoding: chunked").is_some() => chunks(stream)?,
            None => Vec::new(),
        };
        Ok(Self { status: status.context("this is no HTTP")?, body })
    }
}

fn line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    ensure!(stream.read_line(&mut line)? > 0, "the server hung up");
    Ok(line.trim_end().to_owned())
}

fn exactly(stream: &mut impl Read, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Chunks (RFC 9112, §7.1) without trailers.
fn chunks(stream: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let length = usize::from_str_radix(&line(stream)?, 16).context("the length of a chunk")?;
        body.extend(exactly(stream, length)?);
        ensure!(line(stream)?.is_empty(), "a chunk is longer than it says");
        if length == 0 {
            return Ok(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut text: &str) -> (u16, String, &str) {
        let mut bytes = text.as_bytes();
        let answer = Answer::read(&mut bytes).unwrap();
        text = &text[text.len() - bytes.len()..];
        (answer.status, String::from_utf8(answer.body).unwrap(), text)
    }

    #[test]
    fn an_answer_ends_where_it_says() {
        let of_a_length = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{\"ID\":\"7\"}rest";
        assert_eq!(read(of_a_length), (200, "{\"ID\":\"7\"}".into(), "rest"));
        let chunked =
            "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\nrest";
        assert_eq!(read(chunked), (404, "0123456789x".into(), "rest"));
        assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n").0, 204);
        assert!(Answer::read(&mut &b"SSH-2.0\r\n\r\n"[..]).is_err());
        assert!(Answer::read(&mut &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"[..]).is_err());
    }
}
