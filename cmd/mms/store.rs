//! The store of a command: found from `--kv`, `MACHINES_KV` or what NATS users have set.

use std::sync::Arc;

use machines::kv::{ConnectionSettings, CreateDatabase, KvError, Store};

use crate::shared::{Failure, warn};

/// Where a store is looked for when nothing says where it is.
const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

/// Runs a command that speaks with the store at `url` on a small runtime.
pub fn block_on<T>(url: Option<&str>, future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(future);
    // A connection that is still being made must not hold up the exit.
    runtime.shutdown_background();
    result.map_err(|failure| explain(url, failure))
}

/// Tells what trying again won't help from what it may. Who gave no address and reached nobody may not know that one
/// is needed.
fn explain(url: Option<&str>, failure: Failure) -> Failure {
    match failure {
        Failure::Error(error) if error.downcast_ref().is_some_and(is_usage) => Failure::Usage(error),
        Failure::Error(error)
            if url.is_none_or(str::is_empty)
                && matches!(error.downcast_ref(), Some(KvError::Connect { url, .. }) if url == DEFAULT_URL) =>
        {
            format!("{error}; say which store with --kv or MACHINES_KV: nats://HOST:4222 or local:PATH/kv.db").into()
        }
        failure => failure,
    }
}

fn is_usage(error: &KvError) -> bool {
    matches!(
        error,
        KvError::InvalidBucket { .. }
            | KvError::InvalidKey { .. }
            | KvError::InvalidSettings { .. }
            | KvError::SettingFile { .. }
            | KvError::SettingContent { .. }
            | KvError::Setting { .. }
    )
}

/// Opens the store; only commands that may begin with an empty one make an embedded store.
pub async fn open(url: Option<&str>, create: CreateDatabase) -> Result<Arc<dyn Store>, Failure> {
    let url = url.filter(|url| !url.is_empty());
    let unusable = |error: KvError| Failure::Usage(error.into());
    let mut settings = ConnectionSettings::from_environment(url, &|name| std::env::var(name).ok()).map_err(unusable)?;
    "mms".clone_into(&mut settings.name);
    settings.create_database = create;
    if let Some(exposure) = settings.exposure() {
        warn(exposure);
    }
    machines::kv::install_tls_provider();
    Ok(machines::kv::open(&settings).await?)
}
