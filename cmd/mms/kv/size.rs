//! Sizes on the command line: bytes, or a number with a binary unit.

/// Reads `10240`, `512KiB` or `1MiB` (also `512K` and `1M`).
pub fn parse(text: &str) -> Result<u32, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "K" | "KiB" => 1024,
        "M" | "MiB" => 1024 * 1024,
        "G" | "GiB" => 1024 * 1024 * 1024,
        _ => return Err("write a number of bytes, or one with KiB, MiB or GiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number of bytes, or one with KiB, MiB or GiB".to_owned())?;
    // What JetStream can hold in its setting.
    let limit = u64::from(i32::MAX.unsigned_abs());
    match number.checked_mul(factor) {
        Some(bytes @ 1..) if bytes <= limit => u32::try_from(bytes).map_err(|error| error.to_string()),
        _ => Err(format!("it must be 1 to {limit} bytes")),
    }
}
