//! What blocks while it is dropped, such as a directory of unfinished work that removes itself, in the hands of a task: that
//! may be dropped at any moment, by a worker of the runtime, which nothing may hold up. In: a value. Out: shares of it, and its
//! end on a thread where blocking is allowed.

use std::sync::Arc;

use tokio::runtime::Handle;

/// A value that ends aside.
#[derive(Debug)]
pub struct Aside<T: Send + Sync + 'static>(Option<Arc<T>>);

impl<T: Send + Sync + 'static> Aside<T> {
    pub fn new(value: T) -> Self {
        Self(Some(Arc::new(value)))
    }

    /// For work that goes on when the task is dropped; the value ends with the last share. `None` only after the end.
    pub fn share(&self) -> Option<Arc<T>> {
        self.0.clone()
    }

    /// Ends it, and waits for that.
    pub async fn end(mut self) {
        let value = self.0.take();
        // It fails only while the program ends.
        _ = tokio::task::spawn_blocking(move || drop(value)).await;
    }
}

impl<T: Send + Sync + 'static> Drop for Aside<T> {
    fn drop(&mut self) {
        let Some(value) = self.0.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(value))),
            Err(_) => drop(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::ThreadId;

    use super::*;

    struct Told(mpsc::Sender<ThreadId>);

    impl Drop for Told {
        fn drop(&mut self) {
            _ = self.0.send(std::thread::current().id());
        }
    }

    #[test]
    fn no_worker_ends_it_whether_its_task_comes_to_its_end_or_is_dropped() {
        let (sender, ended) = mpsc::channel();
        let here = std::thread::current().id();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(Aside::new(Told(sender.clone())).end());
        assert_ne!(ended.recv().unwrap(), here);
        runtime.block_on(async { drop(Aside::new(Told(sender.clone()))) });
        assert_ne!(ended.recv().unwrap(), here);
        // Without a runtime there is no worker to hold up.
        drop(Aside::new(Told(sender)));
        assert_eq!(ended.recv().unwrap(), here);
    }
}
