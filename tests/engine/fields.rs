//! The fields of state events, kind by kind.

/// What the state event of a kind says besides what all say, as the reference (Choria Autonomous Agents) has it. Kinds that
/// it does not have are free in what they add.
pub const EVENT_FIELDS: &[(&str, &[&str])] = &[
    ("kv", &["bucket", "key", "mode", "state"]),
    ("machines", &["machines", "previous_outcome", "previous_run_time"]),
    ("archive", &["source", "creates", "previous_outcome", "previous_run_time"]),
    ("exec", &["command", "previous_outcome", "previous_run_time"]),
    ("file", &["path", "previous_outcome"]),
    ("schedule", &["state"]),
    ("timer", &["state", "timer"]),
    (
        "nagios",
        &["plugin", "status", "status_code", "output", "check_time", "perfdata", "runtime", "history", "annotations"],
    ),
    ("metric", &["metrics"]),
    ("gossip", &["subject", "payload", "published"]),
    ("httpswitch", &["previous_outcome", "is_on", "annotations"]),
    ("expression", &["previous_outcome"]),
];

/// What the state event of every kind says.
pub const COMMON_FIELDS: &[&str] = &["protocol", "identity", "id", "version", "timestamp", "type", "machine", "name"];
