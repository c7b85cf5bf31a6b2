//! Hex digits: those of digests, and those of the numbers that stand as 16 digits in names and in JSON.

/// A SHA-256.
pub type Digest32 = [u8; 32];

/// Lower-case digits.
pub fn digits(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// A digest from its 64 digits, in either case.
pub fn digest(text: &str) -> Option<Digest32> {
    let mut out = [0; 32];
    hex::decode_to_slice(text, &mut out).ok().map(|()| out)
}

/// A number from exactly 16 digits, in either case.
pub fn number(text: &str) -> Option<u64> {
    let mut out = [0; 8];
    hex::decode_to_slice(text, &mut out).ok().map(|()| u64::from_be_bytes(out))
}

/// For `#[serde(with = "hex::field")]`: a number type that is shown as hex digits and made of a `u64`.
pub mod field {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::fmt::Display;

    /// Writes `value` as it is shown.
    ///
    /// Errors: the serializer's.
    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    /// Reads up to 16 hex digits.
    ///
    /// Errors: the deserializer's, also for a text that is no hex number.
    pub fn deserialize<'de, T: From<u64>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map(T::from).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Lineage, TxId};

    #[test]
    fn digits_and_back() {
        let mut all = [7; 32];
        all[0] = 0xab;
        assert_eq!(digest(&digits(&all)), Some(all));
        assert_eq!(digest(&digits(&all).to_uppercase()), Some(all));
        for odd in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66), &"ä".repeat(32)] {
            assert_eq!(digest(odd), None, "{odd}");
        }
        assert_eq!(number("00000000000000Ff"), Some(255));
        for odd in ["", "ff", "+000000000000001", "000000000000000g", "00000000000000001"] {
            assert_eq!(number(odd), None, "{odd}");
        }
    }

    #[test]
    fn fields_of_json() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Record {
            #[serde(with = "super::field")]
            txid: TxId,
            #[serde(with = "super::field")]
            lineage: Lineage,
        }
        let record = Record { txid: TxId(255), lineage: Lineage(u64::MAX) };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(text, r#"{"txid":"00000000000000ff","lineage":"ffffffffffffffff"}"#);
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert!(serde_json::from_str::<Record>(r#"{"txid":"x","lineage":"1"}"#).is_err());
    }
}
