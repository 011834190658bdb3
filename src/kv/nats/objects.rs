//! The JetStream object store, for archives (`obj://BUCKET/NAME`). Content is streamed both ways; its digest is checked
//! at the end of a read by the client.

use std::sync::Arc;

use async_nats::jetstream::context::ObjectStoreErrorKind;
use async_nats::jetstream::object_store::{Config, GetErrorKind, ObjectStore};
use tokio::time::{Instant, timeout_at};

use super::link::{CALL_LIMIT, Link};
use crate::kv::{KvError, ObjectReader, check_bucket};

/// Opens an object. Reading it has no deadline of its own: how long content may take is the caller's to say.
pub(super) async fn get(link: &Arc<Link>, bucket: &str, name: &str) -> Result<ObjectReader, KvError> {
    check_bucket(bucket)?;
    let deadline = Instant::now() + CALL_LIMIT;
    link.ready(deadline).await?;
    let absent = || KvError::NoObject { bucket: bucket.to_owned(), name: name.to_owned() };
    let open = async {
        let store = link
            .jetstream
            .get_object_store(bucket)
            .await
            .map_err(|error| if is_missing(&error) { absent() } else { failed("open", bucket, name, error) })?;
        store.get(name).await.map_err(|error| match error.kind() {
            GetErrorKind::NotFound => absent(),
            _ => failed("open", bucket, name, error),
        })
    };
    match timeout_at(deadline, open).await {
        Ok(object) => Ok(Box::pin(object?)),
        Err(_) => Err(KvError::Timeout {
            operation: format!("open object {name:?} of object bucket {bucket:?}"),
            url: link.url.clone(),
            limit: CALL_LIMIT,
        }),
    }
}

/// Stores an object; the bucket is made when it is missing.
pub(super) async fn put(link: &Arc<Link>, bucket: &str, name: &str, mut content: ObjectReader) -> Result<(), KvError> {
    check_bucket(bucket)?;
    link.ready(Instant::now() + CALL_LIMIT).await?;
    let store: ObjectStore = match link.jetstream.get_object_store(bucket).await {
        Ok(store) => store,
        Err(error) if is_missing(&error) => {
            let config = Config { bucket: bucket.to_owned(), ..Config::default() };
            let made = link.jetstream.create_object_store(config).await;
            made.map_err(|error| failed("make the bucket for", bucket, name, error))?
        }
        Err(error) => return Err(failed("store", bucket, name, error)),
    };
    store.put(name, &mut content).await.map_err(|error| failed("store", bucket, name, error))?;
    Ok(())
}

fn is_missing(error: &async_nats::jetstream::context::ObjectStoreError) -> bool {
    use async_nats::jetstream::ErrorCode;
    use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind};
    error.kind() == ObjectStoreErrorKind::GetStore
        && std::error::Error::source(error).and_then(|source| source.downcast_ref::<GetStreamError>()).is_some_and(
            |source| match source.kind() {
                GetStreamErrorKind::JetStream(error) => error.error_code() == ErrorCode::STREAM_NOT_FOUND,
                _ => false,
            },
        )
}

fn failed(
    operation: &'static str,
    bucket: &str,
    name: &str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> KvError {
    KvError::Object { operation, bucket: bucket.to_owned(), name: name.to_owned(), source: Box::new(error) }
}
