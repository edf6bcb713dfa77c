//! IoT Hub's query language for twins and device jobs: text in, a checked [`Query`] out, and its evaluation on one
//! document at a time. No I/O; who holds the documents is not known here.
//!
//! Sources: IoT Hub documentation, "IoT Hub query language", "Queries for device and module twins", "Queries for IoT
//! Hub jobs". Two findings of users are added: the functions are spelled `STARTSWITH` and `ENDSWITH`
//! (MicrosoftDocs/azure-docs issue 110329), and lists stand in brackets only (azure-docs pull request 16283).
//!
//! What the documentation leaves open follows Cosmos DB's SQL, whose dialect this is: comparing values of different
//! types, or with something undefined, is undefined, and only `true` selects a document.

mod aggregate;
mod evaluate;
mod functions;
mod lexer;
mod parser;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

pub(crate) use aggregate::{GROUPS_MAX, Groups};
pub(crate) use evaluate::{Document, Operand, Shape, find, walk};
use functions::Function;

/// Longest query in characters (IoT Hub documentation, "Queries for device and module twins", limitations).
const QUERY_LEN_MAX: usize = 8192;

/// A query that makes sense.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) source: Source,
    pub(crate) columns: Columns,
    condition: Option<Expr>,
    group_by: Vec<Path>,
    /// `TOP n`: most rows of all pages together.
    pub(crate) top: Option<u64>,
}

/// The collection after `FROM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Devices,
    Modules,
    Jobs,
}

/// What `SELECT` asks for.
#[derive(Debug, Clone)]
pub(crate) enum Columns {
    /// `*`: whole documents.
    All,
    Some(Vec<Column>),
}

#[derive(Debug, Clone)]
pub(crate) struct Column {
    name: String,
    value: ColumnValue,
}

#[derive(Debug, Clone)]
enum ColumnValue {
    Path(Path),
    Count,
    Aggregate(Aggregate, Path),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aggregate {
    Sum,
    Avg,
    Min,
    Max,
}

/// Names from the document's root down. The names of a twin that the hub defines are in the hub's own spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path(Vec<String>);

impl Path {
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }

    fn last(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// An expression. Chains of operators are lists, so that only parentheses and functions make it deep.
#[derive(Debug, Clone)]
enum Expr {
    Literal(Literal),
    Path(Path),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Compare(Box<Expr>, Comparison, Box<Expr>),
    In { value: Box<Expr>, items: Vec<Literal>, negated: bool },
    Arithmetic(Box<Expr>, Vec<(Arithmetic, Expr)>),
    Call(Function, Vec<Expr>),
}

#[derive(Debug, Clone, PartialEq)]
enum Literal {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// Why a query makes no sense, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueryError {
    /// Counted in characters from 1.
    pub(crate) position: usize,
    pub(crate) problem: String,
}

impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the query makes no sense at position {}: {}", self.position, self.problem)
    }
}

impl Query {
    pub(crate) fn parse(text: &str) -> Result<Self, QueryError> {
        parser::Parser::new(text)?.query()
    }

    /// Every twin of a collection, whole.
    pub(crate) fn all(source: Source) -> Self {
        Self { source, columns: Columns::All, condition: None, group_by: Vec::new(), top: None }
    }

    /// Reads the condition of a job or a configuration: empty or `*` for all devices, what stands after `WHERE`, or
    /// `FROM … [WHERE …]`, which is how modules are named (IoT Hub documentation, "Automatic device management").
    pub(crate) fn parse_condition(text: &str) -> Result<Self, QueryError> {
        parser::Parser::new(text)?.condition_only()
    }

    /// Whether rows are made of many documents: with `GROUP BY` or an aggregate.
    pub(crate) fn is_aggregate(&self) -> bool {
        let has_aggregate =
            |columns: &[Column]| columns.iter().any(|column| !matches!(column.value, ColumnValue::Path(_)));
        match &self.columns {
            Columns::All => false,
            Columns::Some(columns) => !self.group_by.is_empty() || has_aggregate(columns),
        }
    }

    /// The only devices that can match, if the condition names them: no other has to be looked at.
    pub(crate) fn named_devices(&self) -> Option<BTreeSet<&str>> {
        named_devices(self.condition.as_ref()?)
    }
}

fn named_devices(condition: &Expr) -> Option<BTreeSet<&str>> {
    let is_device_id = |expr: &Expr| matches!(expr, Expr::Path(path) if path.0 == ["deviceId"]);
    match condition {
        Expr::And(parts) => parts.iter().find_map(named_devices),
        Expr::Compare(left, Comparison::Equal, right) => match (left.as_ref(), right.as_ref()) {
            (path, Expr::Literal(Literal::Text(id))) | (Expr::Literal(Literal::Text(id)), path)
                if is_device_id(path) =>
            {
                Some(BTreeSet::from([id.as_str()]))
            }
            _ => None,
        },
        Expr::In { value, items, negated: false } if is_device_id(value) => {
            let texts = items.iter().filter_map(|item| match item {
                Literal::Text(id) => Some(id.as_str()),
                Literal::Undefined | Literal::Null | Literal::Bool(_) | Literal::Number(_) => None,
            });
            Some(texts.collect())
        }
        Expr::Literal(_)
        | Expr::Path(_)
        | Expr::Or(_)
        | Expr::Not(_)
        | Expr::Negative(_)
        | Expr::Compare(..)
        | Expr::In { .. }
        | Expr::Arithmetic(..)
        | Expr::Call(..) => None,
    }
}
