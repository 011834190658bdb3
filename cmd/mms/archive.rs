//! `mms archive`: builds the archive of a machine with its entry for machines.json, judges archives as nodes do, and
//! stores them as objects.

use std::path::Path;

use machines::archive::{ArchiveError, Checked, Expectation, Included, Limits};
use machines::kv::CreateDatabase;
use machines::machine::definition::{Definition, FILE_NAME};
use machines::spec::Source;
use serde::Serialize;
use serde_json::json;

use crate::shared::table::Table;
use crate::shared::{Failure, Format, definition, json, line, note};
use crate::store;

/// Whether an archive that nodes would refuse is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    StoredAnyway,
    NotStored,
}

/// An entry of machines.json, its keys in the reference's order.
#[derive(Serialize)]
struct Entry {
    name: String,
    source: String,
    verify: &'static str,
    verify_checksum: String,
    checksum: String,
    r#match: &'static str,
}

pub fn build(directory: &Path, output: &Path, prefix: Option<&str>, include: &[String]) -> Result<(), Failure> {
    let definition = definition::load(directory)?;
    let file_name = format!("{}-{}.tgz", definition.name, definition.version);
    // Judged before anything is written.
    let source = prefix.map(|prefix| source_below(prefix, &file_name)).transpose()?;
    machines::fs::create_directory(output, 0o755)?;
    let included: Vec<Included> = include.iter().map(|pattern| Included::new(pattern)).collect();
    let (name, version) = (&definition.name, &definition.version);
    let built = machines::archive::build_including(directory, name, version, output, &Limits::default(), &included)?;
    let local = source.is_none();
    let source = match source {
        Some(source) => source,
        None => file_source(&built.path)?,
    };
    let shown = built.path.strip_prefix(".").unwrap_or(&built.path);
    for (pattern, _) in
        include.iter().zip(&included).filter(|(_, included)| !built.files.iter().any(|file| included.takes(&file.path)))
    {
        note(format!("warning: --include {pattern:?} names nothing in {}", directory.display()));
    }
    note(format!("wrote {} ({} files)", shown.display(), built.files.len()));
    if local {
        note("its source is a path on this machine; give --source https://… for nodes that fetch it from elsewhere");
    }
    json(&Entry {
        name: built.name.to_string(),
        source,
        verify: machines::archive::CHECKSUM_LIST,
        verify_checksum: built.verify_checksum.to_string(),
        checksum: built.checksum.to_string(),
        r#match: "",
    })
}

fn source_below(prefix: &str, file_name: &str) -> Result<String, Failure> {
    let source = format!("{}/{file_name}", prefix.trim_end_matches('/'));
    Source::parse(&source).map_err(|error| Failure::Usage(format!("--source: {error}").into()))?;
    Ok(source)
}

fn file_source(path: &Path) -> Result<String, Failure> {
    let absolute = path.canonicalize().map_err(|error| format!("could not find {}: {error}", path.display()))?;
    match url::Url::from_file_path(&absolute) {
        Ok(url) => Ok(url.to_string()),
        Err(()) => Err(format!("{} can't be written as a file:// source", absolute.display()).into()),
    }
}

pub fn check(file: &Path, expectation: &Expectation, format: Format) -> Result<(), Failure> {
    let judged = judge(file, expectation);
    match (format, &judged) {
        (Format::Text, Ok((checked, definition))) => print(checked, definition),
        (Format::Json, Ok((checked, definition))) => {
            let files = checked.files.iter().map(|file| {
                json!({"path": file.path, "bytes": file.bytes, "executable": file.executable, "sha256": file.digest})
            });
            json(&json!({
                "accepted": true,
                "name": checked.name,
                "version": definition.version,
                "checksum": checked.checksum,
                "verify_checksum": checked.verify_checksum,
                "bytes": checked.bytes,
                "files": files.collect::<Vec<_>>(),
            }))?;
        }
        (Format::Json, Err(Failure::Error(error) | Failure::Usage(error))) => {
            json(&json!({"accepted": false, "reason": machines::errors::chain(&**error)}))?;
        }
        (_, Err(_)) => {}
    }
    judged.map(drop)
}

fn print(checked: &Checked, definition: &Definition) {
    line(format!("{} {}: a node accepts this archive", checked.name, definition.version));
    line(format!("checksum         {}", checked.checksum));
    line(format!("verify_checksum  {}", checked.verify_checksum));
    line("");
    let mut table = Table::new(["MODE", "BYTES", "SHA256", "FILE"]);
    for file in &checked.files {
        let mode = if file.executable { "0755" } else { "0644" };
        table.row([mode.to_owned(), file.bytes.to_string(), file.digest.short(), file.path.clone()]);
    }
    for row in table.lines() {
        line(row);
    }
}

/// What sync judges (the archive) and what the host judges next (the machine in it).
fn judge(file: &Path, expectation: &Expectation) -> Result<(Checked, Definition), Failure> {
    let checked =
        machines::archive::check(file, expectation, &Limits::default()).map_err(|error| refusal(file, error))?;
    if !checked.files.iter().any(|inside| inside.path == FILE_NAME) {
        return Err(format!("{}: it has no {FILE_NAME}, so no node can run it", file.display()).into());
    }
    let staging = tempfile::tempdir().map_err(|error| format!("could not make a temporary directory: {error}"))?;
    let limits = Limits::default();
    machines::archive::unpack(file, &checked.name, staging.path(), &limits, &checked.verify_checksum)
        .map_err(|error| refusal(file, error))?;
    let directory = staging.path().join(checked.name.as_str());
    let shown = format!("{}!{}/{FILE_NAME}", file.display(), checked.name);
    let loaded = definition::load(&directory).map_err(|mut problems| {
        // The temporary directory means nothing to the reader.
        problems.path = shown.into();
        problems
    });
    // Its directories are read-only, which the temporary directory's own removal does not expect.
    machines::fs::remove_tree(staging.path())?;
    let definition = loaded?;
    if definition.name != checked.name {
        let message = format!(
            "{}: its {FILE_NAME} is of machine {:?}, its directory is {:?}; both must have one name",
            file.display(),
            definition.name.as_str(),
            checked.name.as_str()
        );
        return Err(message.into());
    }
    Ok((checked, definition))
}

fn refusal(file: &Path, error: ArchiveError) -> Failure {
    // These name their file.
    if let ArchiveError::File(error) = error {
        return error.into();
    }
    format!("{}: {}", file.display(), machines::errors::chain(&error)).into()
}

pub async fn put(url: Option<&str>, file: &Path, target: &str, refused: Refused) -> Result<(), Failure> {
    let own_name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let target = target.strip_prefix("obj://").unwrap_or(target);
    let (bucket, name) = match target.split_once('/') {
        Some((bucket, name)) if !name.is_empty() => (bucket, name),
        Some((bucket, _)) => (bucket, own_name),
        None => (target, own_name),
    };
    let source = format!("obj://{bucket}/{name}");
    machines::kv::check_bucket(bucket).map_err(|error| Failure::Usage(error.into()))?;
    Source::parse(&source).map_err(|error| Failure::Usage(error.into()))?;
    let content = tokio::fs::File::from_std(machines::fs::open(file)?);
    if refused == Refused::NotStored {
        judge(file, &Expectation::default()).inspect_err(|_| {
            note("nodes would refuse this archive, so it is not stored; --force stores it");
        })?;
    }
    let store = store::open(url, CreateDatabase::Yes).await?;
    store.put_object(bucket, name, Box::pin(content)).await?;
    line(source);
    Ok(())
}
