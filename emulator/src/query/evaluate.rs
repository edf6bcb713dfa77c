//! Evaluation of a query on one document.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::functions::number;
use super::{Arithmetic, Column, ColumnValue, Columns, Comparison, Expr, Literal, Path, Query};

/// Something that a query can look into.
pub(crate) trait Document {
    /// The value at `path`, as conditions see it.
    fn resolve<'a>(&'a self, path: &Path) -> Operand<'a>;

    /// The value at `path`, as a row shows it; `None` if it is undefined.
    fn project(&self, path: &Path) -> Option<Value> {
        self.resolve(path).into_value()
    }
}

/// A value in an expression. Documents lend theirs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand<'a> {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
    /// An array or an object.
    Tree(&'a Value),
    Object(&'a Map<String, Value>),
    /// What a document puts together for rows only: conditions can ask no more of it than whether it is there, and its
    /// type. Its value comes from [`Document::project`].
    Built(Shape),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Array,
    Object,
}

impl<'a> Operand<'a> {
    pub(crate) fn from_text(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }

    pub(crate) fn number(&self) -> Option<f64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// A condition's outcome; `None` if it has none.
    fn truth(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    pub(super) fn is_array(&self) -> bool {
        matches!(self, Self::Tree(Value::Array(_)) | Self::Built(Shape::Array))
    }

    pub(super) fn is_object(&self) -> bool {
        matches!(self, Self::Tree(Value::Object(_)) | Self::Object(_) | Self::Built(Shape::Object))
    }

    pub(super) fn is_primitive(&self) -> bool {
        matches!(self, Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_))
    }

    pub(crate) fn into_value(self) -> Option<Value> {
        Some(match self {
            Self::Undefined | Self::Built(_) => return None,
            Self::Null => Value::Null,
            Self::Bool(value) => value.into(),
            Self::Number(value) => json_number(value),
            Self::Text(text) => text.into_owned().into(),
            Self::Tree(tree) => tree.clone(),
            Self::Object(object) => Value::Object(object.clone()),
        })
    }
}

impl<'a> From<&'a Value> for Operand<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(value) => value.as_f64().map_or(Self::Undefined, Self::Number),
            Value::String(text) => Self::from_text(text),
            Value::Array(_) | Value::Object(_) => Self::Tree(value),
        }
    }
}

/// The value at `names` below `object`.
pub(crate) fn walk<'a>(object: &'a Map<String, Value>, names: &[String]) -> Operand<'a> {
    if names.is_empty() {
        return Operand::Object(object);
    }
    find(object, names).map_or(Operand::Undefined, Operand::from)
}

/// The same as it is written there; `None` without names.
pub(crate) fn find<'a>(object: &'a Map<String, Value>, names: &[String]) -> Option<&'a Value> {
    let (first, rest) = names.split_first()?;
    rest.iter().fold(object.get(first), |value, name| value?.as_object()?.get(name))
}

/// A whole number without a fraction, as JSON writers of the service do.
pub(super) fn json_number(value: f64) -> Value {
    /// 2^53: beyond it doubles skip whole numbers.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT { (value as i64).into() } else { value.into() }
}

impl Query {
    pub(crate) fn matches(&self, document: &dyn Document) -> bool {
        let holds = |condition: &Expr| condition.evaluate(document) == Operand::Bool(true);
        self.condition.as_ref().is_none_or(holds)
    }

    /// The row that a projection makes of a document; `None` if whole documents are asked for.
    pub(crate) fn project(&self, document: &dyn Document) -> Option<Value> {
        let Columns::Some(columns) = &self.columns else {
            return None;
        };
        let value = |column: &Column| match &column.value {
            ColumnValue::Path(path) => Some((column.name.clone(), document.project(path)?)),
            ColumnValue::Count | ColumnValue::Aggregate(..) => None,
        };
        Some(Value::Object(columns.iter().filter_map(value).collect()))
    }
}

impl Expr {
    fn evaluate<'a>(&'a self, document: &'a dyn Document) -> Operand<'a> {
        match self {
            Self::Literal(literal) => literal.operand(),
            Self::Path(path) => document.resolve(path),
            Self::And(parts) => all(parts.iter().map(|part| part.evaluate(document)), true),
            Self::Or(parts) => all(parts.iter().map(|part| part.evaluate(document)), false),
            Self::Not(inner) => negate(&inner.evaluate(document)),
            Self::Negative(inner) => {
                inner.evaluate(document).number().map_or(Operand::Undefined, |value| Operand::Number(-value))
            }
            Self::Compare(left, comparison, right) => {
                comparison.compare(&left.evaluate(document), &right.evaluate(document))
            }
            Self::In { value, items, negated } => {
                let value = value.evaluate(document);
                let is_item = |item: &Literal| order(&value, &item.operand()) == Some(Ordering::Equal);
                let is_in = if matches!(value, Operand::Undefined) {
                    Operand::Undefined
                } else {
                    Operand::Bool(items.iter().any(is_item))
                };
                if *negated { negate(&is_in) } else { is_in }
            }
            Self::Arithmetic(first, rest) => {
                let value =
                    rest.iter().fold(first.evaluate(document).number(), |value, (operator, operand)| {
                        Some(operator.apply(value?, operand.evaluate(document).number()?))
                    });
                value.map_or(Operand::Undefined, number)
            }
            Self::Call(function, arguments) => {
                let arguments: Vec<Operand<'a>> =
                    arguments.iter().map(|argument| argument.evaluate(document)).collect();
                function.call(&arguments)
            }
        }
    }
}

/// AND (`unit` is true) or OR (false) of three-valued conditions: one value decides, else all have to be known.
fn all<'a>(operands: impl Iterator<Item = Operand<'a>>, unit: bool) -> Operand<'a> {
    let mut known = true;
    for operand in operands {
        match operand.truth() {
            Some(value) if value != unit => return Operand::Bool(value),
            Some(_) => {}
            None => known = false,
        }
    }
    if known { Operand::Bool(unit) } else { Operand::Undefined }
}

fn negate<'a>(operand: &Operand<'_>) -> Operand<'a> {
    operand.truth().map_or(Operand::Undefined, |value| Operand::Bool(!value))
}

/// How two primitive values of one type compare; `None` for all others.
pub(super) fn order(left: &Operand<'_>, right: &Operand<'_>) -> Option<Ordering> {
    match (left, right) {
        (Operand::Null, Operand::Null) => Some(Ordering::Equal),
        (Operand::Bool(left), Operand::Bool(right)) => Some(left.cmp(right)),
        (Operand::Number(left), Operand::Number(right)) => left.partial_cmp(right),
        (Operand::Text(left), Operand::Text(right)) => Some(left.cmp(right)),
        _ => None,
    }
}

impl Comparison {
    fn compare<'a>(self, left: &Operand<'_>, right: &Operand<'_>) -> Operand<'a> {
        let Some(order) = order(left, right) else {
            return Operand::Undefined;
        };
        Operand::Bool(match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        })
    }
}

impl Arithmetic {
    fn apply(self, left: f64, right: f64) -> f64 {
        match self {
            Self::Add => left + right,
            Self::Subtract => left - right,
            Self::Multiply => left * right,
            Self::Divide => left / right,
            Self::Remainder => left % right,
        }
    }
}

impl Literal {
    fn operand(&self) -> Operand<'_> {
        match self {
            Self::Undefined => Operand::Undefined,
            Self::Null => Operand::Null,
            Self::Bool(value) => Operand::Bool(*value),
            Self::Number(value) => Operand::Number(*value),
            Self::Text(text) => Operand::from_text(text),
        }
    }
}
