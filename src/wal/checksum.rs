//! The WAL's checksum: a Fibonacci-weighted sum over pairs of 32-bit words
//! (<https://sqlite.org/fileformat2.html#checksum_algorithm>).

/// The byte order in which words are summed. Stored values are big-endian either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Endian {
    /// WAL magic 0x377f0682.
    Little,
    /// WAL magic 0x377f0683.
    Big,
}

impl Endian {
    /// This machine's, which SQLite here writes.
    pub const NATIVE: Endian = if cfg!(target_endian = "big") { Endian::Big } else { Endian::Little };
}

/// The running sum after some frame: covers the WAL header and every frame up to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct FrameChecksum(pub u32, pub u32);

/// Continues `seed` over `bytes`, whose length must be a multiple of 8 (a remainder is ignored).
pub fn checksum(bytes: &[u8], seed: FrameChecksum, endian: Endian) -> FrameChecksum {
    match endian {
        Endian::Little => sum(bytes, seed, u32::from_le_bytes),
        Endian::Big => sum(bytes, seed, u32::from_be_bytes),
    }
}

#[inline(always)]
fn sum(bytes: &[u8], FrameChecksum(mut a, mut b): FrameChecksum, word: fn([u8; 4]) -> u32) -> FrameChecksum {
    let (pairs, _) = bytes.as_chunks::<8>();
    for &[x0, x1, x2, x3, y0, y1, y2, y3] in pairs {
        a = a.wrapping_add(word([x0, x1, x2, x3])).wrapping_add(b);
        b = b.wrapping_add(word([y0, y1, y2, y3])).wrapping_add(a);
    }
    FrameChecksum(a, b)
}
