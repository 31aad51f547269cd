//! The two hidden commands that run inside a namespace during a storm: one sends frames from a device, one sends bytes to ports.
//! Each prints one line of JSON at its end.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use ports::{Frame, Port as _};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::frames::{Generator, Target};
use crate::say;

/// Frames sent together.
const BURST: u32 = 32;
/// Bytes sent on one connection at most.
const STREAM_MAX: usize = 64 << 10;
/// How long an answer is awaited before the next write, and a connection or write at most.
const PATIENCE: Duration = Duration::from_millis(200);
/// Connections per second and address.
const CONNECTIONS_PER_SECOND: u64 = 20;
/// What the parts expect first, so that the bytes after it reach deeper: nothing, HTTP/2 with empty SETTINGS, HTTP/1.1, a
/// metalbond HELLO, a TLS record.
const OPENINGS: [&[u8]; 5] = [
    b"",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"GET / HTTP/1.1\r\n",
    b"\x01\x00\x04\x01\x08\x05\x18\x01",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
];

/// Sends frames out of a device of this namespace.
#[derive(Debug, Clone, Args)]
pub struct FramesArgs {
    #[arg(long)]
    device: String,
    /// Whom the frames are about, as JSON.
    #[arg(long)]
    target: String,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    seconds: u64,
    /// Frames per second.
    #[arg(long)]
    rate: u32,
}

/// Sends bytes to listening ports.
#[derive(Debug, Clone, Args)]
pub struct BytesArgs {
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    seconds: u64,
    #[arg(required = true)]
    addresses: Vec<SocketAddr>,
}

/// # Errors
/// The device cannot be opened.
pub async fn frames(args: &FramesArgs) -> Result<()> {
    let target: Target = serde_json::from_str(&args.target).context("--target is not valid")?;
    let mut port = ports::AfPacket::open(&args.device, ports::af_packet::Select::All)?;
    let mut generator = Generator::new(args.seed, target);
    let mut packet = Frame::new();
    let (mut made, mut bytes) = (0_u64, 0_u64);
    let pause = Duration::from_secs(1) * BURST / args.rate.max(1);
    let mut ticks = interval(pause);
    // A machine that cannot keep the rate sends less; it does not catch up.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = Instant::now() + Duration::from_secs(args.seconds);
    while Instant::now() < end {
        ticks.tick().await;
        for _ in 0..BURST {
            let frame = generator.next_frame();
            made += 1;
            if packet.fill(&frame) && port.tx_burst(&mut [&mut packet]) == 1 {
                bytes += frame.len() as u64;
            }
        }
    }
    let sent = port.counters().tx_packets;
    say(&json!({"frames": made, "sent": sent, "bytes": bytes}).to_string());
    Ok(())
}

/// # Errors
/// None at present: a refused connection is counted.
pub async fn bytes(args: &BytesArgs) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(args.seed);
    let (mut connections, mut refused, mut bytes) = (0_u64, 0_u64, 0_u64);
    let mut ticks = interval(Duration::from_secs(1) / CONNECTIONS_PER_SECOND as u32);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = Instant::now() + Duration::from_secs(args.seconds);
    while Instant::now() < end {
        ticks.tick().await;
        for address in &args.addresses {
            match timeout(PATIENCE, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    connections += 1;
                    bytes += torment(stream, &mut random).await;
                }
                Ok(Err(_)) | Err(_) => refused += 1,
            }
        }
    }
    say(&json!({"connections": connections, "refused": refused, "bytes": bytes}).to_string());
    Ok(())
}

/// Writes a few pieces, reading what comes between them, and leaves without goodbye. Returns the bytes written.
async fn torment(mut stream: TcpStream, random: &mut SmallRng) -> u64 {
    let opening = OPENINGS.get(random.random_range(0..OPENINGS.len()));
    let mut written = 0;
    let mut answer = [0; 4_096];
    for piece in 0..random.random_range(1..4) {
        let longest = if random.random_ratio(1, 20) {
            STREAM_MAX
        } else {
            600
        };
        let mut noise = vec![0; random.random_range(0..longest)];
        random.fill_bytes(&mut noise);
        let mut bytes = match piece {
            0 => opening.map(|opening| opening.to_vec()).unwrap_or_default(),
            _ => Vec::new(),
        };
        bytes.extend(noise);
        match timeout(PATIENCE, stream.write_all(&bytes)).await {
            Ok(Ok(())) => written += bytes.len() as u64,
            // The other side hung up, or does not read: both are its right.
            Ok(Err(_)) | Err(_) => return written,
        }
        let wait = Duration::from_millis(random.random_range(0..10));
        // Whatever comes is of no interest, only that it does not disturb us.
        let _ = timeout(wait, stream.read(&mut answer)).await;
    }
    written
}
