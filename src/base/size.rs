//! Bytes for people: one way for reports, messages, the command line and the page (whose script says the same).

/// `999 bytes`, `1 KB`, `1.9 GB`: units of 1000, one digit behind the point. (The report of `walrust_verify` has a promised form of its own.)
pub fn size(bytes: u64) -> String {
    if bytes == 1 {
        return "1 byte".to_string();
    }
    let mut value = bytes as f64;
    for unit in ["bytes", "KB", "MB", "GB", "TB"] {
        if value < 999.95 || unit == "TB" {
            let text = if unit == "bytes" { format!("{value}") } else { format!("{value:.1}") };
            return format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text));
        }
        value /= 1000.0;
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_one_style() {
        for (n, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (201, "201 bytes"),
            (999, "999 bytes"),
            (1000, "1 KB"),
            (9_940, "9.9 KB"),
            (999_940, "999.9 KB"),
            (999_999, "1 MB"),
            (1_900_000_000, "1.9 GB"),
            (7_400_000_000_000_000, "7400 TB"),
        ] {
            assert_eq!(size(n), text, "{n}");
        }
    }
}
