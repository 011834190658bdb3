//! The JetStream object store, for archives (`obj://BUCKET/NAME`). Content is streamed both ways; its digest is checked
//! at the end of a read by the client.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use async_nats::jetstream::context::ObjectStoreErrorKind;
use async_nats::jetstream::object_store::{Config, GetErrorKind, ObjectStore};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::link::{CALL_LIMIT, Link};
use crate::kv::{KvError, ObjectReader, check_bucket};

/// Opening an object takes two or three, and each link as many again. The stack has room for a few dozen.
const STEPS: usize = 16;

/// Opens an object. Reading it has no deadline of its own: how long content may take is the caller's to say.
pub(super) async fn get(link: &Arc<Link>, bucket: &str, name: &str) -> Result<ObjectReader, KvError> {
    check_bucket(bucket)?;
    let deadline = Instant::now() + CALL_LIMIT;
    link.ready(deadline).await?;
    let (link_of_task, bucket_of_task, name_of_task) = (Arc::clone(link), bucket.to_owned(), name.to_owned());
    // A task of its own, so that nothing but its own progress polls it.
    let open = AbortOnDropHandle::new(tokio::spawn(bounded(async move {
        let (bucket, name) = (bucket_of_task.as_str(), name_of_task.as_str());
        let absent = || KvError::NoObject { bucket: bucket.to_owned(), name: name.to_owned() };
        let store = link_of_task
            .jetstream
            .get_object_store(bucket)
            .await
            .map_err(|error| if is_missing(&error) { absent() } else { failed("open", bucket, name, error) })?;
        store.get(name).await.map_err(|error| match error.kind() {
            GetErrorKind::NotFound => absent(),
            _ => failed("open", bucket, name, error),
        })
    })));
    match timeout_at(deadline, open).await {
        Ok(Ok(Some(object))) => Ok(Box::pin(object?)),
        Ok(Ok(None)) => {
            Err(failed("open", bucket, name, std::io::Error::other("it links to too many others in a row")))
        }
        Ok(Err(error)) => Err(failed("open", bucket, name, error)),
        Err(_) => Err(KvError::Timeout {
            operation: format!("open object {name:?} of object bucket {bucket:?}"),
            url: link.url.clone(),
            limit: CALL_LIMIT,
        }),
    }
}

/// The client follows links from object to object without end, each one deeper on the stack; a link to itself would end
/// the process. Each takes an answer of the server, which is a step at least. `None` when there are too many.
async fn bounded<F: Future>(work: F) -> Option<F::Output> {
    let (mut work, mut steps) = (pin!(work), 0);
    poll_fn(|context| {
        steps += 1;
        if steps > STEPS {
            return Poll::Ready(None);
        }
        work.as_mut().poll(context).map(Some)
    })
    .await
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
