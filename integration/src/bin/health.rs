//! The standard health service of gRPC, as a container's program: `health PORT FILE SERVICE` says that SERVICE is
//! served while FILE exists, and knows no other. Just enough of HTTP/2 for one call at a time.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
};

/// Types of frames (RFC 9113, section 6).
mod frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
}

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// What a client sends before its first frame.
const PREFACE: usize = 24;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().unwrap_or_else(|| panic!("health: {what} is missing"));
    let (port, file, service) = (next("a port"), PathBuf::from(next("a file")), next("a service"));
    let listener = TcpListener::bind(("0.0.0.0", port.parse().expect("a port")))?;
    for stream in listener.incoming() {
        let (file, service) = (file.clone(), service.clone());
        // Whoever goes away in the middle is not the others' trouble.
        std::thread::spawn(move || serve(stream?, &file, &service));
    }
    Ok(())
}

fn serve(mut stream: TcpStream, file: &Path, service: &str) -> io::Result<()> {
    stream.read_exact(&mut [0; PREFACE])?;
    write(&mut stream, frame::SETTINGS, 0, 0, b"")?;
    let mut asked = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        match (head[3], head[4]) {
            (frame::SETTINGS | frame::PING, flags) if flags & ACK != 0 => {}
            (kind @ (frame::SETTINGS | frame::PING), _) => {
                let same: &[u8] = if kind == frame::PING { &payload } else { b"" };
                write(&mut stream, kind, ACK, 0, same)?;
            }
            (frame::DATA, flags) => {
                asked.extend_from_slice(&payload);
                if flags & END_STREAM != 0 {
                    answer(&mut stream, id, &asked, file, service)?;
                    asked.clear();
                }
            }
            _ => {}
        }
    }
}

/// A message is a byte (not compressed), its length, and the fields: 1 is the name of the service asked about, in the
/// answer the state.
fn answer(stream: &mut TcpStream, id: u32, asked: &[u8], file: &Path, service: &str) -> io::Result<()> {
    // `:status: 200` is number 8 of the static table; the others are literals.
    let head = [&[0x88][..], &literal("content-type", "application/grpc")].concat();
    write(stream, frame::HEADERS, END_HEADERS, id, &head)?;
    let name = asked.get(7..).unwrap_or_default();
    const NOT_FOUND: &str = "5";
    let status = if name == service.as_bytes() {
        let state = if file.exists() { 1 } else { 2 };
        write(stream, frame::DATA, 0, id, &[0, 0, 0, 0, 2, 8, state])?;
        "0"
    } else {
        NOT_FOUND
    };
    write(stream, frame::HEADERS, END_HEADERS | END_STREAM, id, &literal("grpc-status", status))
}

fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name, value] {
        field.push(text.len() as u8);
        field.extend_from_slice(text.as_bytes());
    }
    field
}

fn write(stream: &mut TcpStream, kind: u8, flags: u8, id: u32, payload: &[u8]) -> io::Result<()> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&id.to_be_bytes());
    frame.extend_from_slice(payload);
    stream.write_all(&frame)
}
