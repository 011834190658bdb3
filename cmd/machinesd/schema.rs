//! `machinesd schema`: the JSON Schema of machine.yaml.

use machines::machine::schema;
use machines::watchers::KINDS;

use crate::shared::{Failure, json};

pub fn schema() -> Result<(), Failure> {
    json(&schema::of(KINDS))
}
