//! The fuzz targets' properties on a fixed, bounded set of mutated seeds: what a fuzzer checks without end,
//! each build checks a little.

#[path = "../fuzz/properties.rs"]
mod properties;

/// xorshift64: the same numbers on every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }

    fn mutate(&mut self, seed: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(4) {
            if bytes.is_empty() {
                bytes = seed.to_vec();
            }
            let at = self.below(bytes.len());
            match self.below(7) {
                0 => bytes[at] = self.below(256) as u8,
                1 => bytes[at] = [0, 1, 2, 0x7f, 0x80, 0xff][self.below(6)],
                2 => bytes[at] ^= 1 << self.below(8),
                3 => drop(bytes.drain(at..(at + 1 + self.below(8)).min(bytes.len()))),
                4 => bytes.truncate(at),
                5 => {
                    let from = self.below(other.len());
                    let n = self.below(64).min(other.len() - from).min(bytes.len() - at);
                    bytes[at..at + n].copy_from_slice(&other[from..from + n]);
                }
                _ => bytes.insert(at, self.below(256) as u8),
            }
        }
        bytes
    }
}

fn seeds(dir: &str, suffix: &str, prefix: &[u8]) -> Vec<Vec<u8>> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(dir);
    let mut names: Vec<_> =
        std::fs::read_dir(dir).expect("vectors").map(|e| e.expect("entry").path()).collect();
    names.retain(|n| n.to_string_lossy().ends_with(suffix));
    names.sort();
    assert!(!names.is_empty());
    names.iter().map(|n| [prefix, &std::fs::read(n).expect("vector")].concat()).collect()
}

fn run(seeds: &[Vec<u8>], rounds: usize, property: fn(&[u8])) {
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    seeds.iter().for_each(|s| property(s));
    for _ in 0..rounds {
        let seed = &seeds[numbers.below(seeds.len())];
        let other = &seeds[numbers.below(seeds.len())];
        property(&numbers.mutate(seed, other));
    }
}

#[test]
fn ltx_decode() {
    run(&seeds("ltx", ".ltx", &[]), 20_000, properties::ltx_decode);
}

#[test]
fn ltx_index() {
    // Page size 512, commit 9; then a good index of one page; or a whole file.
    let mut all = seeds("ltx", ".ltx", &[0, 9]);
    all.push(vec![0, 9, 2, 100, 0xa2, 1, 0]);
    all.push(vec![3, 9, 1, 100, 0xa2, 1, 2, 0x86, 2, 0xa2, 1, 0]);
    run(&all, 40_000, properties::ltx_index);
}

#[test]
fn wal_read() {
    let mut all = seeds("wal", ".wal", &[0, 1]);
    all.extend(seeds("wal", ".wal", &[1, 2]));
    run(&all, 4_000, properties::wal_read);
}

#[test]
fn wal_index_header() {
    let mut all = seeds("wal", ".shm", &[0]);
    all.extend(seeds("wal", ".shm", &[1]));
    run(&all, 40_000, properties::wal_index_header);
}

/// Text seeds of `fuzz/seeds/<name>/`, with a prefix.
fn texts(name: &str, prefix: &[u8]) -> Vec<Vec<u8>> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut names: Vec<_> =
        std::fs::read_dir(dir).expect("seeds").map(|e| e.expect("entry").path()).collect();
    names.sort();
    assert!(!names.is_empty());
    names.iter().map(|n| [prefix, &std::fs::read(n).expect("seed")].concat()).collect()
}

#[test]
fn manifest() {
    let mut all = texts("manifest", &[0]);
    all.extend(texts("manifest", &[1]));
    run(&all, 20_000, properties::manifest);
}

#[test]
fn lease() {
    run(&texts("lease", &[]), 40_000, properties::lease);
}

#[test]
fn key_names() {
    run(&texts("key_names", &[]), 20_000, properties::key_names);
}

#[test]
fn config_toml() {
    let example = include_bytes!("../walrust.example.toml").to_vec();
    let mut all = texts("config_toml", &[]);
    all.push(example);
    run(&all, 4_000, properties::config_toml);
}

#[test]
fn config_json() {
    run(&texts("config_json", &[]), 20_000, properties::config_json);
}

#[test]
fn replica_url() {
    run(&texts("replica_url", &[]), 40_000, properties::replica_url);
}

#[test]
fn point() {
    run(&texts("point", &[]), 40_000, properties::point);
}

#[test]
fn records() {
    run(&texts("records", &[]), 40_000, properties::records);
}

#[test]
fn values() {
    run(&texts("values", &[]), 40_000, properties::values);
}
