//! The ledger of a rollout: a file that knows what was meant to be done before it is done, and then what came of it.
//!
//! No key is in it, only fingerprints. Everything is on the disk before a call returns: whatever ends this program, the next one
//! goes on from there.

mod file;
pub(crate) mod lock;
mod rows;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, Row, Transaction, params};
use twinkey_contract::{Fingerprint, Identity, KeySlot};

use crate::failure::Failure;
pub(crate) use rows::{DeviceRow, Event, Prints, Rollout, RolloutState, State, Wish};

/// An open ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    connection: Connection,
    /// Of the file that is open.
    inode: Option<u64>,
    #[cfg(test)]
    pub(crate) fuse: Option<std::sync::Arc<super::fuse::Fuse>>,
}

const DEVICE_COLUMNS: &str = "number, device, module, wave, state, attempts, is_forced, first_slot, first_replaces, second_replaces, \
     first_done_at, before_primary, before_secondary, after_primary, after_secondary, rotation, reason, message, started_at, ended_at";

impl Ledger {
    /// # Errors
    /// There is something of that name.
    pub(crate) fn check_new(path: &Path) -> Result<(), Failure> {
        file::check_new(path)
    }

    /// Makes a ledger that only its owner can read. Nothing is overwritten.
    pub(crate) fn create(path: &Path, rollout: &Rollout, devices: &[DeviceRow]) -> Result<Self, Failure> {
        file::create(path, |transaction| {
            let spec = serde_json::to_string(&rollout.spec)
                .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
            transaction.execute(
                "INSERT INTO rollout (one, id, spec, seed, hub, state, wish, message, created_at, ended_at, forgiven_done, \
                 forgiven_failed) VALUES (1, ?1, ?2, ?3, ?4, ?5, 'run', ?6, ?7, NULL, 0, 0)",
                params![
                    rollout.id.to_string(),
                    spec,
                    rollout.seed,
                    rollout.hub,
                    rollout.state.as_str(),
                    rollout.message,
                    number(rollout.created_at),
                ],
            )?;
            devices.iter().try_for_each(|row| put(transaction, row))?;
            note(transaction, rollout.created_at, None, "created")
        })?;
        Self::open(path)
    }

    /// # Errors
    /// The file is damaged, of another program or of a newer one. It is left as it is.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let connection = file::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            connection,
            inode: file::inode(path),
            #[cfg(test)]
            fuse: None,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn rollout(&self) -> Result<Rollout, Failure> {
        let query = "SELECT id, spec, seed, hub, state, message, created_at, ended_at, forgiven_done, forgiven_failed FROM rollout";
        let row = self.connection.query_row(query, [], |row| {
            Ok(Rollout {
                id: parsed(row, 0, |text| text.parse().ok())?,
                spec: parsed(row, 1, |text| serde_json::from_str(text).ok())?,
                seed: row.get(2)?,
                hub: row.get(3)?,
                state: parsed(row, 4, RolloutState::read)?,
                message: row.get(5)?,
                created_at: unsigned(row.get(6)?),
                ended_at: row.get::<_, Option<i64>>(7)?.map(unsigned),
                forgiven_done: unsigned(row.get(8)?),
                forgiven_failed: unsigned(row.get(9)?),
            })
        });
        let rollout: Rollout = row.map_err(|e| self.failed("read", &e))?;
        match rollout.spec.check() {
            Ok(()) => Ok(rollout),
            Err(why) => Err(file::damaged(&self.path, &why.what)),
        }
    }

    /// All devices in their order.
    pub(crate) fn devices(&self) -> Result<Vec<DeviceRow>, Failure> {
        let read = || {
            let query = format!("SELECT {DEVICE_COLUMNS} FROM device ORDER BY number");
            let mut statement = self.connection.prepare(&query)?;
            statement.query_map([], device)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = read().map_err(|e| self.failed("read", &e))?;
        let is_odd = |(place, row): (usize, &DeviceRow)| {
            row.number as usize != place || row.wave as usize > rows.len()
        };
        if rows.iter().enumerate().any(is_odd) {
            return Err(file::damaged(&self.path, "its devices are not numbered as they should be"));
        }
        Ok(rows)
    }

    /// All that happened, in order.
    pub(crate) fn events(&self) -> Result<Vec<Event>, Failure> {
        let read = || {
            let mut statement =
                self.connection.prepare("SELECT at, device, what FROM event ORDER BY number")?;
            let event = |row: &Row<'_>| {
                Ok(Event { at: unsigned(row.get(0)?), device: row.get(1)?, what: row.get(2)? })
            };
            statement.query_map([], event)?.collect::<rusqlite::Result<Vec<_>>>()
        };
        read().map_err(|e| self.failed("read", &e))
    }

    pub(crate) fn wish(&self) -> Result<Wish, Failure> {
        if !file::is_same(&self.path, self.inode) {
            return Err(Failure::failed(format!(
                "the ledger {} was removed or replaced while it was worked on",
                self.path.display()
            ))
            .next("put it back and resume, or make a new one from the hub: twinkey rollout rebuild"));
        }
        let wish =
            self.connection.query_row("SELECT wish FROM rollout", [], |row| parsed(row, 0, Wish::read));
        wish.map_err(|e| self.failed("read", &e))
    }

    pub(crate) fn set_wish(&mut self, wish: Wish, at: u64) -> Result<(), Failure> {
        self.commit(|transaction| {
            // An abort is for good.
            let query =
                "UPDATE rollout SET wish = ?1 WHERE wish != 'abort' AND state NOT IN ('done', 'aborted')";
            transaction.execute(query, [wish.as_str()])?;
            note(transaction, at, None, &format!("wish: {}", wish.as_str()))
        })
    }

    /// Takes a wish to pause for fulfilled: whoever has the lock goes on.
    pub(crate) fn forget_pause(&mut self) -> Result<(), Failure> {
        self.commit(|transaction| {
            transaction.execute("UPDATE rollout SET wish = 'run' WHERE wish = 'pause'", []).map(drop)
        })
    }

    /// Keeps where the rollout stands.
    pub(crate) fn set_state(
        &mut self,
        state: RolloutState,
        message: Option<&str>,
        at: u64,
    ) -> Result<(), Failure> {
        let ended_at = match state {
            RolloutState::Aborted | RolloutState::Done => Some(number(at)),
            RolloutState::Running | RolloutState::Paused | RolloutState::Halted => None,
        };
        self.commit(|transaction| {
            transaction.execute(
                "UPDATE rollout SET state = ?1, message = ?2, ended_at = ?3",
                params![state.as_str(), message, ended_at],
            )?;
            note(transaction, at, None, state.as_str())
        })
    }

    /// From now on, devices that have ended by now no longer count as failures.
    pub(crate) fn forgive(&mut self, done: u64, failed: u64) -> Result<(), Failure> {
        self.commit(|transaction| {
            let values = params![number(done), number(failed)];
            transaction
                .execute("UPDATE rollout SET forgiven_done = ?1, forgiven_failed = ?2", values)
                .map(drop)
        })
    }

    /// Keeps what is known of these devices, and that it happened.
    pub(crate) fn keep<'a>(
        &mut self,
        rows: impl IntoIterator<Item = &'a DeviceRow>,
        at: u64,
    ) -> Result<(), Failure> {
        self.commit(|transaction| {
            rows.into_iter().try_for_each(|row| {
                put(transaction, row)?;
                note(transaction, at, Some(row.number), row.state.as_str())
            })
        })
    }

    /// Makes a change as a whole; it is on the disk when this returns.
    fn commit(
        &mut self,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), Failure> {
        #[cfg(test)]
        super::fuse::step(self.fuse.as_deref())?;
        let write = |connection: &mut Connection| {
            let transaction =
                connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            change(&transaction)?;
            transaction.commit()
        };
        write(&mut self.connection).map_err(|e| file::failed(&self.path, "write", &e))?;
        #[cfg(test)]
        super::fuse::step(self.fuse.as_deref())?;
        Ok(())
    }

    fn failed(&self, verb: &str, error: &rusqlite::Error) -> Failure {
        file::failed(&self.path, verb, error)
    }
}

fn put(transaction: &Transaction<'_>, row: &DeviceRow) -> rusqlite::Result<()> {
    let print = |print: Option<Fingerprint>| print.map(|print| print.to_string());
    transaction
        .execute(
            &format!(
                "INSERT OR REPLACE INTO device ({DEVICE_COLUMNS}) VALUES \
                 (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)"
            ),
            params![
                row.number,
                row.identity.device_id,
                row.identity.module_id,
                row.wave,
                row.state.as_str(),
                row.attempts,
                row.is_forced,
                row.first_slot.map(KeySlot::as_str),
                print(row.first_replaces),
                print(row.second_replaces),
                row.first_done_at.map(number),
                print(row.before.primary),
                print(row.before.secondary),
                print(row.after.primary),
                print(row.after.secondary),
                row.rotation,
                row.reason,
                row.message,
                row.started_at.map(number),
                row.ended_at.map(number),
            ],
        )
        .map(drop)
}

fn note(transaction: &Transaction<'_>, at: u64, device: Option<u32>, what: &str) -> rusqlite::Result<()> {
    let values = params![number(at), device, what];
    transaction.execute("INSERT INTO event (at, device, what) VALUES (?1, ?2, ?3)", values).map(drop)
}

fn device(row: &Row<'_>) -> rusqlite::Result<DeviceRow> {
    let print = |column| optional(row, column, |text| text.parse().ok());
    let time = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(unsigned));
    Ok(DeviceRow {
        number: row.get(0)?,
        identity: Identity { device_id: row.get(1)?, module_id: row.get(2)? },
        wave: row.get(3)?,
        state: parsed(row, 4, State::read)?,
        attempts: row.get(5)?,
        is_forced: row.get(6)?,
        first_slot: optional(row, 7, |word| KeySlot::ALL.into_iter().find(|slot| slot.as_str() == word))?,
        first_replaces: print(8)?,
        second_replaces: print(9)?,
        first_done_at: time(10)?,
        before: Prints { primary: print(11)?, secondary: print(12)? },
        after: Prints { primary: print(13)?, secondary: print(14)? },
        rotation: row.get(15)?,
        reason: row.get(16)?,
        message: row.get(17)?,
        started_at: time(18)?,
        ended_at: time(19)?,
    })
}

fn parsed<T>(row: &Row<'_>, column: usize, read: impl FnOnce(&str) -> Option<T>) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    read(&text).ok_or_else(|| odd(column))
}

fn optional<T>(
    row: &Row<'_>,
    column: usize,
    read: impl FnOnce(&str) -> Option<T>,
) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| read(&text).ok_or_else(|| odd(column))).transpose()
}

fn odd(column: usize) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(column, "a word of twinkey's".to_owned(), rusqlite::types::Type::Text)
}

/// SQLite has signed numbers only; times and counts are far from the end of both.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests;
