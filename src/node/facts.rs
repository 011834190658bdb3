//! What describes a node: one JSON object, or the reason why it can't be told at the moment. In: what the facts files
//! gave. Out: values at paths.
//!
//! Facts that can't be used answer nothing: who takes "I can't read them" for "there is no such fact" removes machines
//! from a node because a file was half written.

use std::sync::OnceLock;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::query::{QueryError, query};

/// The facts as they are, or as they were when they could still be used.
#[derive(Debug, Default)]
pub struct Facts {
    /// `Null` when none could be used yet.
    value: Value,
    text: OnceLock<String>,
    unusable: Option<Unusable>,
}

/// Why the facts can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unusable {
    pub since: Timestamp,
    /// The file, what is wrong with it, and the remedy.
    pub reason: String,
}

/// Why a fact can't be told. None of these means that there is no such fact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    #[error("the facts can't be used: {reason}")]
    Unusable { reason: String },
    #[error(transparent)]
    Query(#[from] QueryError),
}

impl Facts {
    pub fn new(value: Value) -> Self {
        Self { value, text: OnceLock::new(), unusable: None }
    }

    /// The same, which can't be used any more.
    pub(super) fn spoiled(&self, unusable: Unusable) -> Self {
        Self { value: self.value.clone(), text: OnceLock::new(), unusable: Some(unusable) }
    }

    /// Why they can't be used, when that is so.
    pub fn unusable(&self) -> Option<&Unusable> {
        self.unusable.as_ref()
    }

    /// All of them, for what decides by them.
    ///
    /// # Errors
    /// When they can't be used.
    pub fn usable(&self) -> Result<&Value, FactsError> {
        match &self.unusable {
            None => Ok(&self.value),
            Some(unusable) => Err(FactsError::Unusable { reason: unusable.reason.clone() }),
        }
    }

    /// As they were when they could last be used, for those who only show them; `Null` when they never could.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// [`Self::value`] as JSON, for the file that commands read. It is empty, and so no JSON, when they never could be
    /// used: a script then fails, where it would take `{}` for an answer.
    pub fn text(&self) -> &str {
        if self.value.is_null() {
            return "";
        }
        self.text.get_or_init(|| self.value.to_string())
    }

    /// The value at a GJSON path; `None` when there is none.
    ///
    /// # Errors
    /// When they can't be used, or the path can't.
    pub fn query(&self, path: &str) -> Result<Option<Value>, FactsError> {
        self.usable()?;
        Ok(query(self.text(), path)?)
    }
}
