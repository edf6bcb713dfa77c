//! The functions that conditions may call, by their names without regard to case.

use std::borrow::Cow;

use super::evaluate::Operand;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    IsArray,
    IsBool,
    IsDefined,
    IsNull,
    IsNumber,
    IsObject,
    IsPrimitive,
    IsString,
    AsNumber,
    Abs,
    Exp,
    Power,
    Square,
    Ceiling,
    Floor,
    Sign,
    Sqrt,
    Concat,
    Length,
    Lower,
    Upper,
    Substring,
    IndexOf,
    StartsWith,
    EndsWith,
    Contains,
}

impl Function {
    const ALL: [(&'static str, Self); 26] = [
        ("is_array", Self::IsArray),
        ("is_bool", Self::IsBool),
        ("is_defined", Self::IsDefined),
        ("is_null", Self::IsNull),
        ("is_number", Self::IsNumber),
        ("is_object", Self::IsObject),
        ("is_primitive", Self::IsPrimitive),
        ("is_string", Self::IsString),
        ("as_number", Self::AsNumber),
        ("abs", Self::Abs),
        ("exp", Self::Exp),
        ("power", Self::Power),
        ("square", Self::Square),
        ("ceiling", Self::Ceiling),
        ("floor", Self::Floor),
        ("sign", Self::Sign),
        ("sqrt", Self::Sqrt),
        ("concat", Self::Concat),
        ("length", Self::Length),
        ("lower", Self::Lower),
        ("upper", Self::Upper),
        ("substring", Self::Substring),
        ("index_of", Self::IndexOf),
        ("startswith", Self::StartsWith),
        ("endswith", Self::EndsWith),
        ("contains", Self::Contains),
    ];

    pub(super) fn find(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, function)| function)
    }

    /// How many arguments it takes.
    pub(super) fn arity(self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::IsArray
            | Self::IsBool
            | Self::IsDefined
            | Self::IsNull
            | Self::IsNumber
            | Self::IsObject
            | Self::IsPrimitive
            | Self::IsString
            | Self::AsNumber
            | Self::Abs
            | Self::Exp
            | Self::Square
            | Self::Ceiling
            | Self::Floor
            | Self::Sign
            | Self::Sqrt
            | Self::Length
            | Self::Lower
            | Self::Upper => 1..=1,
            Self::Power | Self::IndexOf | Self::StartsWith | Self::EndsWith | Self::Contains => 2..=2,
            Self::Substring => 2..=3,
            Self::Concat => 2..=usize::MAX,
        }
    }

    /// Undefined for arguments of the wrong type, except for the questions about types.
    pub(super) fn call<'a>(self, arguments: &[Operand<'a>]) -> Operand<'a> {
        let Some(first) = arguments.first() else {
            return Operand::Undefined;
        };
        let numeric =
            |compute: fn(f64) -> f64| first.number().map_or(Operand::Undefined, |x| number(compute(x)));
        let textual =
            |compute: &dyn Fn(&str) -> Operand<'a>| first.text().map_or(Operand::Undefined, compute);
        let partly = |compute: &dyn Fn(&str, &str) -> Operand<'a>| match (
            first.text(),
            arguments.get(1).and_then(Operand::text),
        ) {
            (Some(text), Some(part)) => compute(text, part),
            _ => Operand::Undefined,
        };
        match self {
            Self::IsArray => Operand::Bool(first.is_array()),
            Self::IsBool => Operand::Bool(matches!(first, Operand::Bool(_))),
            Self::IsDefined => Operand::Bool(!matches!(first, Operand::Undefined)),
            Self::IsNull => Operand::Bool(matches!(first, Operand::Null)),
            Self::IsNumber => Operand::Bool(first.number().is_some()),
            Self::IsObject => Operand::Bool(first.is_object()),
            Self::IsPrimitive => Operand::Bool(first.is_primitive()),
            Self::IsString => Operand::Bool(first.text().is_some()),
            Self::AsNumber => match first {
                Operand::Number(x) => Operand::Number(*x),
                Operand::Text(text) => text.trim().parse().map_or(Operand::Undefined, number),
                Operand::Undefined
                | Operand::Null
                | Operand::Bool(_)
                | Operand::Tree(_)
                | Operand::Object(_)
                | Operand::Built(_) => Operand::Undefined,
            },
            Self::Abs => numeric(f64::abs),
            Self::Exp => numeric(f64::exp),
            Self::Square => numeric(|x| x * x),
            Self::Ceiling => numeric(f64::ceil),
            Self::Floor => numeric(f64::floor),
            Self::Sign => numeric(|x| if x == 0.0 { 0.0 } else { x.signum() }),
            Self::Sqrt => numeric(f64::sqrt),
            Self::Power => match (first.number(), arguments.get(1).and_then(Operand::number)) {
                (Some(x), Some(y)) => number(x.powf(y)),
                _ => Operand::Undefined,
            },
            Self::Length => textual(&|text| Operand::Number(text.chars().count() as f64)),
            Self::Lower => textual(&|text| owned(text.to_lowercase())),
            Self::Upper => textual(&|text| owned(text.to_uppercase())),
            Self::Concat => {
                let texts = arguments.iter().map(Operand::text);
                texts.collect::<Option<String>>().map_or(Operand::Undefined, owned)
            }
            Self::Substring => substring(arguments).map_or(Operand::Undefined, owned),
            Self::IndexOf => partly(&|text, part| match text.split_once(part) {
                Some((before, _)) => Operand::Number(before.chars().count() as f64),
                None => Operand::Number(-1.0),
            }),
            Self::StartsWith => partly(&|text, part| Operand::Bool(text.starts_with(part))),
            Self::EndsWith => partly(&|text, part| Operand::Bool(text.ends_with(part))),
            Self::Contains => partly(&|text, part| Operand::Bool(text.contains(part))),
        }
    }
}

fn owned<'a>(text: String) -> Operand<'a> {
    Operand::Text(Cow::Owned(text))
}

/// `SUBSTRING(text, start [, length])`, counted in characters from 0.
fn substring(arguments: &[Operand<'_>]) -> Option<String> {
    let at = |index: usize| Some(arguments.get(index)?.number()?.max(0.0) as usize);
    let len = if arguments.len() > 2 { at(2)? } else { usize::MAX };
    Some(arguments.first()?.text()?.chars().skip(at(1)?).take(len).collect())
}

/// What is no number (the root of -1, say) is undefined.
pub(super) fn number<'a>(value: f64) -> Operand<'a> {
    if value.is_finite() { Operand::Number(value) } else { Operand::Undefined }
}
