//! The embedded store: an SQLite file in WAL mode, which the daemon and `mms` use at the same time, each from its own
//! process. It keeps the promises of a JetStream bucket: revisions, history, time to live, deletions as entries.
//! `database` is the file and its tables, `entries` the statements on them, `watch` follows changes of any process,
//! `objects` are plain files beside the database, `slots` are the governors.

mod database;
mod entries;
mod objects;
mod slots;
mod watch;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use self::database::{Access, Database};
use self::entries::Change;
use super::names::check_pattern;
use super::settings::CreateDatabase;
use super::{
    Bucket, BucketSettings, BucketStatus, Connection, Entry, KvError, ObjectReader, Operation, Slots, Store, Watch,
    check_bucket, check_key, check_settings,
};

/// An open embedded store.
pub(super) struct LocalStore {
    database: Arc<Database>,
}

impl LocalStore {
    pub async fn open(path: &Path, create: CreateDatabase) -> Result<Self, KvError> {
        let path = path.to_owned();
        let database = tokio::task::spawn_blocking(move || Database::open(&path, create))
            .await
            .map_err(|_| KvError::Stopping { operation: "open the embedded store".to_owned() })??;
        Ok(Self { database: Arc::new(database) })
    }
}

struct LocalBucket {
    database: Arc<Database>,
    name: String,
}

impl LocalBucket {
    fn operation(&self, verb: &str, key: &str) -> String {
        format!("{verb} key {key:?} of bucket {:?}", self.name)
    }

    async fn change(&self, verb: &str, key: &str, change: Change, value: Bytes) -> Result<u64, KvError> {
        check_key(key)?;
        let (name, owned_key) = (self.name.clone(), key.to_owned());
        let operation = self.operation(verb, key);
        let revision = self
            .database
            .call(Access::Write, operation, move |transaction| {
                entries::store(transaction, &name, &owned_key, change, &value)
            })
            .await?;
        self.database.changed();
        Ok(revision)
    }
}

#[async_trait::async_trait]
impl Bucket for LocalBucket {
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        check_key(key)?;
        let (name, owned_key) = (self.name.clone(), key.to_owned());
        let operation = self.operation("get", key);
        let newest = self
            .database
            .call(Access::Read, operation, move |transaction| entries::newest(transaction, &name, &owned_key))
            .await?;
        Ok(newest.filter(|entry| entry.operation == Operation::Put))
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.change("put", key, Change::Put, value).await
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.change("create", key, Change::Create, value).await
    }

    async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<u64, KvError> {
        self.change("update", key, Change::Update { revision }, value).await
    }

    async fn delete(&self, key: &str) -> Result<(), KvError> {
        self.change("delete", key, Change::Delete, Bytes::new()).await.map(drop)
    }

    async fn purge(&self, key: &str) -> Result<(), KvError> {
        self.change("purge", key, Change::Purge, Bytes::new()).await.map(drop)
    }

    async fn keys(&self) -> Result<Vec<String>, KvError> {
        let name = self.name.clone();
        let operation = format!("list the keys of bucket {name:?}");
        self.database.call(Access::Read, operation, move |transaction| entries::keys(transaction, &name)).await
    }

    async fn history(&self, key: &str) -> Result<Vec<Entry>, KvError> {
        check_key(key)?;
        let (name, owned_key) = (self.name.clone(), key.to_owned());
        let operation = self.operation("read the history of", key);
        self.database
            .call(Access::Read, operation, move |transaction| entries::history(transaction, &name, &owned_key))
            .await
    }

    async fn watch(&self, pattern: &str) -> Result<Watch, KvError> {
        check_pattern(pattern)?;
        Ok(watch::start(&self.database, &self.name, pattern))
    }

    async fn status(&self) -> Result<BucketStatus, KvError> {
        let name = self.name.clone();
        let operation = format!("get the status of bucket {name:?}");
        self.database.call(Access::Read, operation, move |transaction| entries::status(transaction, &name)).await
    }
}

#[async_trait::async_trait]
impl Store for LocalStore {
    fn bucket(&self, name: &str) -> Result<Arc<dyn Bucket>, KvError> {
        check_bucket(name)?;
        Ok(Arc::new(LocalBucket { database: Arc::clone(&self.database), name: name.to_owned() }))
    }

    async fn create_bucket(&self, settings: &BucketSettings) -> Result<Arc<dyn Bucket>, KvError> {
        let bucket = self.bucket(&settings.name)?;
        check_settings(settings)?;
        let settings = settings.clone();
        let operation = format!("make bucket {:?}", settings.name);
        self.database
            .call(Access::Write, operation, move |transaction| entries::create_bucket(transaction, &settings))
            .await?;
        self.database.changed();
        Ok(bucket)
    }

    async fn delete_bucket(&self, name: &str) -> Result<(), KvError> {
        check_bucket(name)?;
        let name = name.to_owned();
        let operation = format!("delete bucket {name:?}");
        self.database
            .call(Access::Write, operation, move |transaction| entries::delete_bucket(transaction, &name))
            .await?;
        self.database.changed();
        Ok(())
    }

    async fn buckets(&self) -> Result<Vec<String>, KvError> {
        self.database.call(Access::Read, "list the buckets".to_owned(), entries::buckets).await
    }

    async fn get_object(&self, bucket: &str, name: &str) -> Result<ObjectReader, KvError> {
        objects::get(self.database.path(), bucket, name).await
    }

    async fn put_object(&self, bucket: &str, name: &str, content: ObjectReader) -> Result<(), KvError> {
        objects::put(self.database.path(), bucket, name, content).await
    }

    fn slots(&self) -> Option<Arc<dyn Slots>> {
        Some(Arc::new(slots::LocalSlots::new(Arc::clone(&self.database))))
    }

    fn connection(&self) -> Connection {
        let url = format!("local:{}", self.database.path().display());
        Connection { url, connected: true, detail: format!("SQLite {}", rusqlite::version()) }
    }

    fn nats(&self) -> Option<async_nats::Client> {
        None
    }
}
