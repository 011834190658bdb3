//! How entries and buckets look, for people and as JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use machines::kv::{BucketStatus, Entry, Operation};
use serde_json::{Value, json};

use crate::shared::table::Table;
use crate::shared::{Failure, Format, json, line};

/// A value in a table is cut to this many characters.
const SHOWN_CHARACTERS: usize = 40;

/// An entry as JSON: the value as text where it is text, else in base64.
pub fn document(entry: &Entry) -> Value {
    let mut document = json!({
        "bucket": entry.bucket,
        "key": entry.key,
        "revision": entry.revision,
        "created": entry.created,
        "operation": entry.operation,
    });
    let (name, value) = match std::str::from_utf8(&entry.value) {
        Ok(text) => ("value", text.to_owned()),
        Err(_) => ("value_base64", STANDARD.encode(&entry.value)),
    };
    if let (Some(fields), Operation::Put) = (document.as_object_mut(), entry.operation) {
        fields.insert(name.to_owned(), value.into());
    }
    document
}

/// The line above a value.
pub fn heading(entry: &Entry) -> String {
    format!("{} > {} revision: {} created @ {}", entry.bucket, entry.key, entry.revision, moment(entry.created))
}

/// One line for one change.
pub fn change(entry: &Entry) -> String {
    let start = format!("[{}] {} {} > {}", moment(entry.created), verb(entry.operation), entry.bucket, entry.key);
    match entry.operation {
        Operation::Put => format!("{start}: {}", one_line(&entry.value, usize::MAX)),
        Operation::Delete | Operation::Purge => start,
    }
}

pub fn history(entries: &[Entry], format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return json(&entries.iter().map(document).collect::<Vec<_>>());
    }
    let mut table = Table::new(["REVISION", "OPERATION", "CREATED", "BYTES", "VALUE"]);
    for entry in entries {
        table.row([
            entry.revision.to_string(),
            verb(entry.operation).to_owned(),
            moment(entry.created),
            entry.value.len().to_string(),
            one_line(&entry.value, SHOWN_CHARACTERS),
        ]);
    }
    table.lines().into_iter().for_each(line);
    Ok(())
}

pub fn names(names: &[String], format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => json(&names),
        Format::Text => {
            names.iter().for_each(line);
            Ok(())
        }
    }
}

pub fn status(status: &BucketStatus, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return json(status);
    }
    let limit = status.maximum_value_bytes.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{bytes} bytes"));
    let ttl = status.ttl_seconds.map_or_else(
        || "never".to_owned(),
        |seconds| format!("after {}", machines::duration::format(std::time::Duration::from_secs(seconds))),
    );
    line(format!("bucket          {}", status.bucket));
    line(format!("entries         {} ({} bytes)", status.values, status.bytes));
    line(format!("history         {} revisions of each key", status.history));
    line(format!("entries vanish  {ttl}"));
    line(format!("largest value   {limit}"));
    line(format!("replicas        {}", status.replicas));
    line(format!("kept by         {}", status.backing));
    Ok(())
}

fn verb(operation: Operation) -> &'static str {
    match operation {
        Operation::Put => "PUT",
        Operation::Delete => "DEL",
        Operation::Purge => "PURGE",
    }
}

/// To the second, in UTC.
fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A value for one line of a terminal.
pub fn one_line(value: &[u8], limit: usize) -> String {
    machines::shown::cut(String::from_utf8_lossy(value).trim_end(), limit)
}
