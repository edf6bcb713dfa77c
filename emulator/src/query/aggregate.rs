//! Rows made of many documents: `GROUP BY`, `COUNT`, `SUM`, `AVG`, `MIN` and `MAX`.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::Value;

use super::evaluate::{Document, Operand, json_number, order};
use super::{Aggregate, ColumnValue, Columns, Query};

/// Most groups of one query, so that grouping by a property that is different everywhere can't fill the memory.
pub(crate) const GROUPS_MAX: usize = 10_000;

/// The groups found so far, in the order of their keys.
#[derive(Debug)]
pub(crate) struct Groups<'q> {
    query: &'q Query,
    groups: BTreeMap<String, Group>,
}

#[derive(Debug)]
struct Group {
    /// The values of the `GROUP BY` paths.
    values: Vec<Option<Value>>,
    /// One for each column.
    cells: Vec<Cell>,
}

#[derive(Debug, Clone, Default)]
struct Cell {
    count: u64,
    sum: f64,
    /// Least or greatest so far.
    extreme: Option<Value>,
}

/// More groups than [`GROUPS_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooManyGroups;

impl<'q> Groups<'q> {
    pub(crate) fn new(query: &'q Query) -> Self {
        let mut groups = Self { query, groups: BTreeMap::new() };
        if query.group_by.is_empty() {
            // An aggregate of nothing is still a row.
            groups.groups.insert(String::new(), Group { values: Vec::new(), cells: groups.empty_cells() });
        }
        groups
    }

    fn empty_cells(&self) -> Vec<Cell> {
        match &self.query.columns {
            Columns::All => Vec::new(),
            Columns::Some(columns) => vec![Cell::default(); columns.len()],
        }
    }

    /// Counts a document that matches.
    pub(crate) fn add(&mut self, document: &dyn Document) -> Result<(), TooManyGroups> {
        let Columns::Some(columns) = &self.query.columns else {
            return Ok(());
        };
        // Not always as a row shows it: 1 and 1.0 are equal, and one group.
        let value = |path| {
            let operand = document.resolve(path);
            if matches!(operand, Operand::Built(_)) { document.project(path) } else { operand.into_value() }
        };
        let values: Vec<Option<Value>> = self.query.group_by.iter().map(value).collect();
        let shown =
            |value: &Option<Value>| value.as_ref().map_or_else(|| "undefined".to_owned(), Value::to_string);
        let key = values.iter().map(shown).collect::<Vec<_>>().join(",");
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&key) {
            return Err(TooManyGroups);
        }
        let cells = self.empty_cells();
        let group = self.groups.entry(key).or_insert(Group { values, cells });
        for (column, cell) in columns.iter().zip(&mut group.cells) {
            match &column.value {
                ColumnValue::Count => cell.count += 1,
                ColumnValue::Aggregate(aggregate, path) => cell.add(*aggregate, document.resolve(path)),
                ColumnValue::Path(_) => {}
            }
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The rows with their keys, in the order of keys.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&str, Value)> {
        self.groups.iter().map(|(key, group)| (key.as_str(), self.row(group)))
    }

    fn row(&self, group: &Group) -> Value {
        let Columns::Some(columns) = &self.query.columns else {
            return Value::Null;
        };
        let cells = columns.iter().zip(&group.cells).filter_map(|(column, cell)| {
            let value = match &column.value {
                ColumnValue::Count => Some(cell.count.into()),
                ColumnValue::Aggregate(aggregate, _) => cell.value(*aggregate),
                ColumnValue::Path(path) => {
                    let at = self.query.group_by.iter().position(|grouped| grouped == path)?;
                    group.values.get(at)?.clone()
                }
            };
            Some((column.name.clone(), value?))
        });
        Value::Object(cells.collect())
    }
}

impl Cell {
    fn add(&mut self, aggregate: Aggregate, operand: Operand<'_>) {
        match aggregate {
            Aggregate::Sum | Aggregate::Avg => {
                if let Some(number) = operand.number() {
                    self.sum += number;
                    self.count += 1;
                }
            }
            Aggregate::Min | Aggregate::Max => {
                let wanted = if aggregate == Aggregate::Min { Ordering::Less } else { Ordering::Greater };
                let replaces = match &self.extreme {
                    None => operand.is_primitive(),
                    Some(extreme) => order(&operand, &Operand::from(extreme)) == Some(wanted),
                };
                if replaces {
                    self.extreme = operand.into_value();
                }
            }
        }
    }

    fn value(&self, aggregate: Aggregate) -> Option<Value> {
        match aggregate {
            Aggregate::Sum => Some(json_number(self.sum)),
            Aggregate::Avg => (self.count > 0).then(|| json_number(self.sum / self.count as f64)),
            Aggregate::Min | Aggregate::Max => self.extreme.clone(),
        }
    }
}
