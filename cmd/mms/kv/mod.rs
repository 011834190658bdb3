//! `mms kv`: buckets and keys, with the same words over NATS and over the embedded store.

pub mod print;
pub mod size;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use machines::kv::{Bucket, BucketSettings, CreateDatabase, WatchEvent};

use crate::arguments::KvCommand;
use crate::input::Input;
use crate::shared::{self, Failure, Format, json, json_line, line, note, raw};
use crate::store;

pub async fn run(url: Option<&str>, command: KvCommand) -> Result<(), Failure> {
    match command {
        KvCommand::Add { bucket, history, ttl, replicas, max_value_size, format } => {
            let settings = BucketSettings {
                name: bucket,
                history,
                ttl,
                replicas: usize::from(replicas),
                maximum_value_bytes: Some(max_value_size),
            };
            let store = store::open(url, CreateDatabase::Yes).await?;
            print::status(&store.create_bucket(&settings).await?.status().await?, format)
        }
        KvCommand::Put { bucket, key, value } => {
            let value = read_value(&value)?;
            open(url, &bucket).await?.put(&key, value.clone()).await?;
            shared::value(&value);
            Ok(())
        }
        KvCommand::Create { bucket, key, value } => {
            let value = read_value(&value)?;
            open(url, &bucket).await?.create(&key, value.clone()).await?;
            shared::value(&value);
            Ok(())
        }
        KvCommand::Update { bucket, key, value, revision } => {
            let value = read_value(&value)?;
            open(url, &bucket).await?.update(&key, value.clone(), revision).await?;
            shared::value(&value);
            Ok(())
        }
        KvCommand::Get { bucket, key, raw: true, .. } => {
            raw(&get(url, &bucket, &key).await?.value);
            Ok(())
        }
        KvCommand::Get { bucket, key, raw: false, format } => {
            let entry = get(url, &bucket, &key).await?;
            match format {
                Format::Json => json(&print::document(&entry)),
                Format::Text => {
                    line(print::heading(&entry));
                    line("");
                    shared::value(&entry.value);
                    Ok(())
                }
            }
        }
        KvCommand::Del { bucket, key: Some(key), .. } => {
            let handle = open(url, &bucket).await?;
            require(&*handle, &bucket, &key).await?;
            handle.delete(&key).await?;
            note(format!("deleted key {key:?} of bucket {bucket:?}; its history is kept"));
            Ok(())
        }
        KvCommand::Del { bucket, key: None, force: true } => {
            store::open(url, CreateDatabase::No).await?.delete_bucket(&bucket).await?;
            note(format!("deleted bucket {bucket:?}"));
            Ok(())
        }
        KvCommand::Del { bucket, key: None, force: false } => Err(Failure::Usage(
            format!(
                "this deletes bucket {bucket:?} with every key in it; give the key, or --force for the whole bucket"
            )
            .into(),
        )),
        KvCommand::Purge { bucket, key } => {
            let handle = open(url, &bucket).await?;
            if handle.history(&key).await?.is_empty() {
                return Err(no_key(&bucket, &key));
            }
            handle.purge(&key).await?;
            note(format!("purged key {key:?} of bucket {bucket:?} with its history"));
            Ok(())
        }
        KvCommand::Ls { bucket, format } => {
            let names = match bucket {
                Some(bucket) => open(url, &bucket).await?.keys().await?,
                None => store::open(url, CreateDatabase::No).await?.buckets().await?,
            };
            print::names(&names, format)
        }
        KvCommand::History { bucket, key, format } => {
            let entries = open(url, &bucket).await?.history(&key).await?;
            if entries.is_empty() {
                return Err(no_key(&bucket, &key));
            }
            print::history(&entries, format)
        }
        KvCommand::Watch { bucket, pattern, format } => watch(url, &bucket, &pattern, format).await,
        KvCommand::Status { bucket, format } => print::status(&open(url, &bucket).await?.status().await?, format),
    }
}

async fn open(url: Option<&str>, bucket: &str) -> Result<Arc<dyn Bucket>, Failure> {
    Ok(store::open(url, CreateDatabase::No).await?.bucket(bucket)?)
}

async fn get(url: Option<&str>, bucket: &str, key: &str) -> Result<machines::kv::Entry, Failure> {
    open(url, bucket).await?.get(key).await?.ok_or_else(|| no_key(bucket, key))
}

/// The stores take the deletion of a key that is not there; a person who mistyped it wants to know.
async fn require(handle: &dyn Bucket, bucket: &str, key: &str) -> Result<(), Failure> {
    handle.get(key).await?.map(drop).ok_or_else(|| no_key(bucket, key))
}

fn no_key(bucket: &str, key: &str) -> Failure {
    format!("bucket {bucket:?} has no key {key:?}; `mms kv ls {bucket}` lists those that it has").into()
}

fn read_value(value: &str) -> Result<Bytes, Failure> {
    if value != "-" {
        return Ok(Bytes::copy_from_slice(value.as_bytes()));
    }
    let content = Input::new(Path::new(value)).read()?;
    if content.is_empty() {
        // In `mms pack … | mms kv put … -` the shell does not tell us that packing failed.
        return Err("standard input is empty, so nothing was put; to put an empty value, give '' as VALUE".into());
    }
    Ok(content.into())
}

async fn watch(url: Option<&str>, bucket: &str, pattern: &str, format: Format) -> Result<(), Failure> {
    let handle = open(url, bucket).await?;
    // A watch would wait for a bucket that does not exist; here it is a typing error.
    handle.status().await?;
    let mut events = handle.watch(pattern).await?;
    while let Some(event) = events.next().await {
        match (event, format) {
            (WatchEvent::Entry(entry), Format::Json) => json_line(&print::document(&entry)),
            (WatchEvent::Entry(entry), Format::Text) => line(print::change(&entry)),
            (WatchEvent::Current, _) => {}
            (WatchEvent::Interrupted(reason), _) => note(format!("interrupted, trying again: {reason}")),
        }
    }
    Ok(())
}
