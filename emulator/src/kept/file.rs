//! The file: an SQLite database with one table of records.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use super::Changes;
use crate::error::EmulatorError;
use crate::files;

/// Marks the file as ours (SQLite, `PRAGMA application_id`): `tkey` in ASCII.
const APPLICATION_ID: i64 = 0x746b_6579;
/// Version of the format (`PRAGMA user_version`). It grows when an older program would misread the records.
const FORMAT: i64 = 1;
/// Bytes of a record's checksum: the first of SHA-256 over table, key and value. SQLite has none of its own.
const SUM_LEN: usize = 8;

#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    connection: Connection,
}

impl StateFile {
    /// Opens the file, or makes one that only its owner can read. One that is damaged or newer is left as it is.
    pub(super) fn open(dir: &Path) -> Result<Self, EmulatorError> {
        let path = dir.join("state.db");
        match std::fs::metadata(&path) {
            // None of ours is ever empty; SQLite would take it for a new one, and all devices would be gone.
            Ok(metadata) if metadata.len() == 0 => return Err(unusable(&path, "it is empty")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if dir.join("state.db-wal").exists() {
                    return Err(unusable(&path, "it is missing, though its log is there"));
                }
                Self::create(dir, &path)?;
            }
            Err(source) => return Err(EmulatorError::DataDir { path, source }),
        }
        let connection = Connection::open(&path).map_err(|error| unusable(&path, error))?;
        let mut file = Self { path, connection };
        file.prepare()?;
        Ok(file)
    }

    /// Makes the file under another name first: whatever ends this program meanwhile, it is there as a whole or not at all.
    fn create(dir: &Path, path: &Path) -> Result<(), EmulatorError> {
        let beside = dir.join("state.db.new");
        let failed = |source| EmulatorError::DataDir { path: beside.clone(), source };
        files::remove(&beside)?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(failed)?;
        let made = Connection::open(&beside).and_then(|connection| {
            connection.execute_batch(&format!(
                "PRAGMA synchronous=FULL;
                 BEGIN;
                 CREATE TABLE records (
                     kind INTEGER NOT NULL, key TEXT NOT NULL, sum BLOB NOT NULL, value BLOB NOT NULL,
                     PRIMARY KEY (kind, key)
                 );
                 PRAGMA application_id={APPLICATION_ID};
                 PRAGMA user_version={FORMAT};
                 COMMIT;"
            ))
        });
        made.map_err(|error| unusable(&beside, error))?;
        std::fs::rename(&beside, path)
            .and_then(|()| std::fs::File::open(dir)?.sync_all())
            .map_err(|source| EmulatorError::DataDir { path: path.to_owned(), source })
    }

    fn prepare(&mut self) -> Result<(), EmulatorError> {
        let failed = |error: rusqlite::Error| unusable(&self.path, error);
        // Alone: then the log needs no shared memory. Written through before a commit returns: power may go.
        self.connection
            .execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=FULL;")
            .map_err(failed)?;
        let number = |name: &str| {
            self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(failed)
        };
        let (application, format) = (number("application_id")?, number("user_version")?);
        match (application, format) {
            (APPLICATION_ID, FORMAT) => {
                let check = "PRAGMA quick_check(1)";
                let found = self.connection.query_row(check, [], |row| row.get::<_, String>(0));
                let found = found.map_err(failed)?;
                if found != "ok" {
                    return Err(unusable(&self.path, format!("it is damaged: {found}")));
                }
            }
            (APPLICATION_ID, other) => {
                let problem = format!("it has format {other}, and this program knows format {FORMAT}");
                return Err(unusable(&self.path, problem));
            }
            _ => return Err(unusable(&self.path, "it is a database of another program")),
        }
        self.connection.execute_batch("PRAGMA journal_mode=WAL;").map_err(failed)
    }

    /// All records by table and key.
    pub(super) fn load(&mut self) -> Result<BTreeMap<(u8, String), Vec<u8>>, EmulatorError> {
        let failed = |error: rusqlite::Error| unusable(&self.path, error);
        let mut statement =
            self.connection.prepare("SELECT kind, key, sum, value FROM records").map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        let mut records = BTreeMap::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let read = || Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
            let (kind, key, kept_sum, value): (u8, String, Vec<u8>, Vec<u8>) = read().map_err(failed)?;
            if kept_sum != sum(kind, &key, &value) {
                return Err(unusable(
                    &self.path,
                    format!("it is damaged: the record {key:?} is not what was written"),
                ));
            }
            records.insert((kind, key), value);
        }
        Ok(records)
    }

    /// Writes all changes or none, and returns when they are on the disk.
    pub(super) fn write(&mut self, changes: &Changes) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut put = transaction.prepare(
                "INSERT INTO records (kind, key, sum, value) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (kind, key) DO UPDATE SET sum = excluded.sum, value = excluded.value",
            )?;
            let mut remove = transaction.prepare("DELETE FROM records WHERE kind = ?1 AND key = ?2")?;
            for ((table, key), value) in changes {
                let kind = *table as u8;
                match value {
                    Some(value) => put.execute(params![kind, key, sum(kind, key, value), value])?,
                    None => remove.execute(params![kind, key])?,
                };
            }
        }
        transaction.commit()
    }
}

fn sum(kind: u8, key: &str, value: &[u8]) -> Vec<u8> {
    // Ids contain no zero byte: the parts can't run into each other.
    let whole = Sha256::new().chain_update([kind]).chain_update(key).chain_update([0]).chain_update(value);
    whole.finalize().into_iter().take(SUM_LEN).collect()
}

fn unusable(path: &Path, problem: impl ToString) -> EmulatorError {
    EmulatorError::State { path: path.to_owned(), problem: problem.to_string() }
}
